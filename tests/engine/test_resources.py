"""What each stage asks for, from two cores to a thousand, and what a cluster can never give."""

import math
from pathlib import Path

import pytest
import yaml

from wsseg_ray import recipe
from wsseg_ray.errors import RecipeError
from wsseg_ray.stages import resources
from wsseg_ray.stages.resources import GB, Needs, Node, check, needs

LAPTOP = [Node(2, 0, 8 * GB)]
SERVER = [Node(64, 0, 256 * GB)]
WORKSTATION = [Node(16, 2, 64 * GB)]
# cluster.yaml: what may come, beside a head without CPUs
CLOUD = [Node(16, 0, 32 * GB, 8), Node(8, 1, 32 * GB, 4)]
STAGES = ["images", "proposals", "train_hcp", "score", "refine", "supervise", "train_segmenter", "predict"]


def asked(stage: str, nodes: list[Node], *settings: str) -> Needs:
    return needs(recipe.load("demo", list(settings)), stage, nodes)


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
        ("train_segmenter", WORKSTATION, Needs(1, 1, 0, 2, 2, 1)),
        ("predict", CLOUD, Needs(1, 1, 0, 1, 4, 1)),
        ("train_hcp", CLOUD, Needs(1, 1, 0, 4, 4, 1)),
    ],
)
def test_what_suits_a_cluster(stage, nodes, expected):
    assert asked(stage, nodes) == expected


def test_two_workers_on_a_laptop_share_its_cores():
    assert asked("score", LAPTOP, "runtime.num_workers=2") == Needs(0.5, 0, 0, 1, 2, 1)
    assert asked("train_hcp", LAPTOP, "runtime.num_workers=2") == Needs(0.5, 0, 0, 2, 2, 1)


def test_what_the_recipe_says_goes():
    settings = ["score.gpus=0.5", "score.cpus=2", "score.memory_gb=3", "score.min_workers=2", "score.max_workers=6"]
    found = asked("score", CLOUD, *(f"runtime.stages.{setting}" for setting in settings))
    assert found == Needs(2, 0.5, 3 * GB, 2, 6, 2)
    assert found.options() == {"num_cpus": 2, "num_gpus": 0.5, "memory": 3 * GB}
    assert found.bundle() == {"CPU": 2, "GPU": 0.5, "memory": 3 * GB}
    assert asked("supervise", CLOUD, "runtime.stages.supervise.max_workers=3").most == 3
    assert asked("score", CLOUD, "runtime.use_gpu=false").gpus == 0


def test_a_training_shrinks_only_where_it_is_allowed_to():
    found = asked("train_segmenter", CLOUD, "segmentation.batch_size=8", "runtime.stages.train_segmenter.min_workers=1")
    assert (found.least, found.most) == (1, 4)


@pytest.mark.parametrize("nodes", [LAPTOP, SERVER, WORKSTATION, CLOUD, [Node(1000, 8, 0)], [Node(2, 0, GB, 500)]])
def test_the_defaults_fit_everywhere(nodes):
    for name in recipe.shipped():
        check(recipe.load(name, ["dataset.root=/x"] if name != "demo" else []), STAGES, nodes)


@pytest.mark.parametrize(
    ("settings", "nodes", "message"),
    [
        (["score.gpus=1"], LAPTOP, r"runtime\.stages\.score.*1 GPUs; no machine of the cluster has that: 1 x 2 CPUs"),
        (["images.memory_gb=9"], LAPTOP, r"runtime\.stages\.images.* 9\.0 GB; no machine"),
        (["supervise.cpus=3"], LAPTOP, r"runtime\.stages\.supervise.*3 CPUs"),
        (["train_hcp.max_workers=6"], CLOUD, r"train_hcp: asks for 6 workers of 1 CPUs, 1 GPUs; 4 fit"),
        (["score.min_workers=5", "score.max_workers=9"], CLOUD, r"score: asks for 5 workers"),
        (["score.cpus=2"], LAPTOP, r"1 workers hold 2 of 2 CPUs, and a task that feeds them needs 1: it would wait"),
    ],
)
def test_what_a_cluster_can_never_give_is_said_at_once(settings, nodes, message):
    asked_for = recipe.load("demo", [f"runtime.stages.{setting}" for setting in settings])
    with pytest.raises(RecipeError, match=message):
        check(asked_for, STAGES, nodes)


def test_tasks_need_no_second_cpu_beside_them():
    check(recipe.load("demo"), ["images", "proposals", "refine", "supervise"], [Node(1, 0, GB)])
    with pytest.raises(RecipeError, match=r"score: 1 workers hold 0\.5 of 1 CPUs"):
        check(recipe.load("demo"), ["score"], [Node(1, 0, GB)])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("score.min_workers=0", "min_workers"),
        ("scoer.cpus=1", r"runtime\.stages\.scoer: no such key; there are images, proposals"),
        ("images.gpus=1", r"runtime\.stages\.images\.gpus: no such key; there are cpus"),
        ("train_hcp.batch_size=3", r"train_hcp\.batch_size: no such key"),
        ("predict={min_workers: 3, max_workers: 2}", "min_workers 3 is more than max_workers 2"),
    ],
)
def test_a_mistake_in_the_recipe_is_named(setting, message):
    with pytest.raises(RecipeError, match=message):
        recipe.load("demo", [f"runtime.stages.{setting}"])


def test_this_cluster_is_seen_as_it_is(cluster):
    found = resources.cluster(recipe.load("demo"))
    assert [(node.cpus, node.gpus, node.count) for node in found] == [(2, 0, 1)]


def test_what_a_cluster_may_grow_to_is_what_the_recipe_says(cluster):
    grown = recipe.load("demo", ["runtime.cluster=[{cpus: 16, count: 8}, {cpus: 8, gpus: 1, count: 4, memory_gb: 3}]"])
    assert resources.cluster(grown) == [Node(16, 0, math.inf, 8), Node(8, 1, 3 * GB, 4)]
    assert needs(grown, "score") == asked("score", CLOUD)


def test_or_what_ray_up_was_told(cluster, monkeypatch):
    monkeypatch.setattr(resources, "BOOTSTRAP", Path(__file__).parents[2] / "cluster.yaml")
    assert resources.cluster(recipe.load("demo")) == [Node(16, 0, math.inf, 8), Node(8, 1, math.inf, 4)]


def test_a_cluster_without_a_cpu_says_how_to_say_what_comes(monkeypatch):
    monkeypatch.setattr(resources.ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 0.0, "memory": 1e9}}])
    with pytest.raises(RecipeError, match=r"no machine .* has a CPU .*runtime\.cluster="):
        resources.cluster(recipe.load("demo"))


def test_the_runtime_does_not_rerun_anything():
    plain = recipe.load("demo")
    changed = recipe.load("demo", ["runtime.stages.score.cpus=3"])
    assert yaml.safe_load(recipe.dump(changed))["runtime"]["stages"]["score"]["cpus"] == 3
    assert plain.model_dump(exclude={"runtime"}) == changed.model_dump(exclude={"runtime"})
