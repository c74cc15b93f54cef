"""What each stage asks for, from two cores to a thousand, and what a cluster can never give."""

import math

import pytest
import yaml

from tests.runs import settled
from wsseg_ray import pipeline, recipe
from wsseg_ray.engine import resources
from wsseg_ray.engine.resources import GB, Needs, Node, check, needs
from wsseg_ray.engine.stage import Stage
from wsseg_ray.errors import RecipeError

LAPTOP = [Node(2, 0, 8 * GB)]
SERVER = [Node(64, 0, 256 * GB)]
WORKSTATION = [Node(16, 2, 64 * GB)]
# cluster.yaml: what may come, beside a head without CPUs
CLOUD = [Node(16, 0, 32 * GB, 8), Node(8, 1, 32 * GB, 4)]


def stages(loaded: recipe.Recipe, *names: str) -> list[Stage]:
    return [stage for stage in pipeline.stages_of(loaded) if not names or stage.name in names]


def asked(name: str, nodes: list[Node], *settings: str) -> Needs:
    loaded = recipe.load("demo", list(settings))
    (stage,) = stages(loaded, name)
    return needs(loaded, stage, nodes)


@pytest.mark.parametrize(
    ("stage", "nodes", "expected"),
    [
        ("images", LAPTOP, Needs(1, 0, 0, 1, None, 1)),
        ("proposals", LAPTOP, Needs(1, 0, 0, 1, None, 1)),  # the demo has no trunk that draws contours
        ("score", LAPTOP, Needs(0.5, 0, 0, 1, 1, 2)),
        ("train_segmenter", LAPTOP, Needs(0.5, 0, 0, 1, 1, 2)),
        ("score", SERVER, Needs(4, 0, 0, 1, 8, 4)),
        ("train_hcp", SERVER, Needs(32, 0, 0, 1, 1, 32)),
        ("score", WORKSTATION, Needs(1, 1, 0, 1, 2, 1)),
        ("train_segmenter", WORKSTATION, Needs(1, 1, 0, 1, 2, 1)),
        ("predict", CLOUD, Needs(1, 1, 0, 1, 4, 1)),
        ("train_hcp", CLOUD, Needs(1, 1, 0, 1, 4, 1)),
    ],
)
def test_what_suits_a_cluster(stage, nodes, expected):
    assert asked(stage, nodes) == expected


def test_two_workers_on_a_laptop_share_its_cores():
    assert asked("score", LAPTOP, "runtime.num_workers=2") == Needs(0.5, 0, 0, 1, 2, 1)
    assert asked("train_hcp", LAPTOP, "runtime.num_workers=2") == Needs(0.5, 0, 0, 2, 2, 1)


@pytest.mark.parametrize(
    ("stage", "kinds", "nodes", "settings", "expected"),
    [
        ("score", 2, LAPTOP, [], 0.75),
        ("score", 2, LAPTOP, ["runtime.num_workers=2"], 0.5),
        ("score", 3, LAPTOP, [], 0.5),
        ("score", 2, SERVER, [], 1),
        ("score", 2, CLOUD, [], 1),
        # beside an actor, on what may be the last machine
        ("score", 2, [Node(0, 0, GB), Node(1, 0, GB, 2)], [], 0.25),
        ("score", 2, [Node(1, 0, GB), Node(32, 0, 32 * GB)], [], 1),
        # 32 actors would hold every CPU: then what the fewest actors leave
        ("score", 2, LAPTOP, ["runtime.stages.score.max_workers=32"], 0.75),
    ],
)
def test_every_kind_of_task_runs_beside_the_actors(stage, kinds, nodes, settings, expected):
    assert resources.task_cpus(asked(stage, nodes, *settings), kinds, nodes) == expected


def test_what_the_recipe_says_goes():
    settings = ["score.gpus=0.5", "score.cpus=2", "score.memory_gb=3", "score.min_workers=2", "score.max_workers=6"]
    found = asked("score", CLOUD, *(f"runtime.stages.{setting}" for setting in settings))
    assert found == Needs(2, 0.5, 3 * GB, 2, 6, 1), "a GPU takes photos in batches"
    assert found.options() == {"num_cpus": 2, "num_gpus": 0.5, "memory": 3 * GB}
    assert found.bundle() == {"CPU": 2, "GPU": 0.5, "memory": 3 * GB}
    assert asked("supervise", CLOUD, "runtime.stages.supervise.max_workers=3").most == 3
    assert asked("score", CLOUD, "runtime.use_gpu=false").gpus == 0


def test_large_photos_ask_for_memory_that_a_machine_has():
    """200 bytes per pixel, at most half of a machine's memory; what the recipe says goes."""
    loaded = recipe.load("demo", ["runtime.stages.score.memory_gb=3"])
    found = {stage.name: needs(loaded, stage, LAPTOP, 12_000_000).memory for stage in stages(loaded)}
    assert found["proposals"] == found["predict"] == 2.4 * GB and found["score"] == 3 * GB
    assert needs(loaded, stages(loaded, "proposals")[0], LAPTOP, 50_000_000).memory == 4 * GB
    proposals = stages(loaded, "proposals")[0]
    assert needs(loaded, proposals, LAPTOP).memory == 0, "where the size is not known"
    assert needs(loaded, proposals, LAPTOP, 400 * 300).memory == 0, "photos of ordinary size"
    assert needs(loaded, proposals, [Node(16, 0, math.inf, 8)], 12_000_000).memory == 0, "an autoscaler knows of none"


def test_a_task_beside_actors_uses_what_others_leave():
    assert [resources.task_threads(nodes) for nodes in (LAPTOP, [Node(0.5, 0, 0)], SERVER, CLOUD)] == [2, 1, 1, 1]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([], (1, 4)),
        (["runtime.num_workers=3"], (3, 3)),
        (["runtime.stages.train_segmenter.max_workers=2"], (2, 2)),
        (["runtime.stages.train_segmenter={min_workers: 2, max_workers: 3}"], (2, 3)),
    ],
)
def test_a_training_shrinks_unless_its_number_of_workers_is_said(settings, expected):
    found = asked("train_segmenter", CLOUD, "segmentation.batch_size=8", *settings)
    assert (found.least, found.most) == expected


@pytest.mark.parametrize("nodes", [LAPTOP, SERVER, WORKSTATION, CLOUD, [Node(1000, 8, 0)], [Node(2, 0, GB, 500)]])
def test_the_defaults_fit_everywhere(nodes):
    for name in recipe.shipped():
        loaded = settled(name)
        check(loaded, stages(loaded), nodes)


@pytest.mark.parametrize(
    ("settings", "nodes", "message"),
    [
        (["score.gpus=1"], LAPTOP, r"runtime\.stages\.score.*1 GPUs; no machine of the cluster has that: 1 x 2 CPUs"),
        (["images.memory_gb=9"], LAPTOP, r"runtime\.stages\.images.* 9\.0 GB; no machine"),
        (["supervise.cpus=3"], LAPTOP, r"runtime\.stages\.supervise.*3 CPUs"),
        (["train_hcp.max_workers=6"], CLOUD, r"train_hcp: asks for 6 workers of 1 CPUs, 1 GPUs; 4 fit"),
        (
            ["train_hcp={cpus: 1, min_workers: 1, max_workers: 2}"],
            LAPTOP,
            r"train_hcp: 2 workers hold 2 of 2 CPUs, and a task that feeds them needs 1: it would wait for ever",
        ),
        (["score.min_workers=5", "score.max_workers=9"], CLOUD, r"score: asks for 5 workers"),
        (["score.cpus=2"], LAPTOP, r"1 workers hold 2 of 2 CPUs, and a task that feeds them needs 1: it would wait"),
    ],
)
def test_what_a_cluster_can_never_give_is_said_at_once(settings, nodes, message):
    asked_for = recipe.load("demo", [f"runtime.stages.{setting}" for setting in settings])
    with pytest.raises(RecipeError, match=message):
        check(asked_for, stages(asked_for), nodes)


def test_tasks_need_no_second_cpu_beside_them():
    loaded = recipe.load("demo")
    check(loaded, stages(loaded, "images", "proposals", "refine", "supervise"), [Node(1, 0, GB)])
    with pytest.raises(RecipeError, match=r"score: 1 workers hold 0\.5 of 1 CPUs"):
        check(loaded, stages(loaded, "score"), [Node(1, 0, GB)])


def checked(setting: str) -> None:
    loaded = recipe.load("demo", [f"runtime.stages.{setting}"])
    resources.check_names(loaded, [stage.resources for stage in stages(loaded)])
    check(loaded, stages(loaded), CLOUD)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("score.min_workers=0", "min_workers"),
        ("scoer.cpus=1", r"runtime\.stages\.scoer: no such stage; there are images, proposals"),
        ("score.cpu=1", r"runtime\.stages\.score\.cpu: no such key; there are cpus"),
        ("images.gpus=1", r"runtime\.stages\.images\.gpus: a stage that runs on tasks has none"),
        ("refine.min_workers=2", r"runtime\.stages\.refine\.min_workers: a stage that runs on tasks has none"),
        ("train_hcp.batch_size=3", r"train_hcp\.batch_size: a stage that runs on trainers has none"),
        ("predict={min_workers: 3, max_workers: 2}", "min_workers 3 is more than max_workers 2"),
    ],
)
def test_a_mistake_in_the_recipe_is_named(setting, message):
    with pytest.raises(RecipeError, match=message):
        checked(setting)


def test_what_a_stage_may_have_with_another_recipe_is_no_mistake():
    """Proposals are drawn by tasks here, and by actors where a backbone finds the contours."""
    checked("proposals.gpus=0")
    checked("proposals.min_workers=1")


def test_rounds_ask_as_their_stage_does():
    found = [asked(name, CLOUD, "segmentation.rounds=2", "runtime.stages.relabel.max_workers=3") for name in RELABELS]
    assert [needs.most for needs in found] == [3, 3]


RELABELS = ("relabel-1", "relabel-2")


def test_a_gpu_is_used_where_there_is_or_may_be_one():
    loaded = recipe.load("demo")
    assert not resources.use_gpu(loaded, LAPTOP) and resources.use_gpu(loaded, CLOUD)
    assert resources.use_gpu(recipe.load("demo", ["runtime.use_gpu=true"]), LAPTOP)


def test_a_kind_of_machine_from_rays_names():
    assert resources.node({"CPU": 4.0, "memory": 8e9, "node:1.2.3.4": 1.0}, 3) == Node(4, 0, 8e9, 3)


def test_the_runtime_does_not_rerun_anything():
    plain = recipe.load("demo")
    changed = recipe.load("demo", ["runtime.stages.score.cpus=3"])
    assert yaml.safe_load(recipe.dump(changed))["runtime"]["stages"]["score"]["cpus"] == 3
    assert plain.model_dump(exclude={"runtime"}) == changed.model_dump(exclude={"runtime"})
