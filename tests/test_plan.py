"""Planning with hand-made costs: what is carried to more photos, and shared out over more machines."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from wsseg_ray import pipeline, plan, recipe
from wsseg_ray.errors import RecipeError
from wsseg_ray.plan import (
    Cost,
    Machines,
    Measured,
    bytes_of,
    cautions,
    estimate,
    feeders,
    fit,
    gains,
    measure,
    seconds,
    table,
    workers,
)
from wsseg_ray.storage import RunDirectory
from wsseg_ray.tables import shard_size

HERE = Machines(2, 0)
COSTS = {
    "images": Cost(2.0, 0.0, 0.01, 1, 1, 100, 2),
    "train_hcp": Cost(10.0, 0.0, 0.1, 3, 1, 5000, 2),
    "score": Cost(4.0, 0.0, 0.5, 1, 1, 1000, 2),
    "predict": Cost(1.0, 0.0, 0.2, 1, 1, 10, 2),
}
PHOTOS = {"train": 100, "val": 50}
DEMO = recipe.load("demo")


def measured(photos: int, fixed: float, a_shard: float, each: float, power: int = 1) -> Measured:
    shards = math.ceil(photos / shard_size(photos))
    return Measured(fixed + a_shard * shards + each * 2 * photos**power, 0.0, 2 * photos, photos, 100 * photos)


def test_the_costs_of_three_runs_are_found_again():
    found = fit([measured(n, 8.0, 0.25, 0.5) for n in (16, 64, 256)], 1, 2)
    assert (found.fixed, found.a_shard, found.seconds) == pytest.approx((8.0, 0.25, 0.5))
    assert (found.work, found.bytes, found.workers) == (2.0, 100.0, 2)
    planned = seconds(DEMO, {"score": found}, {"train": 3200, "val": 0}, HERE)
    assert planned["score"] == pytest.approx(8 + 0.25 * 100 + 3200)


def test_how_many_cpus_keep_a_gpu_busy():
    assert feeders(Measured(10.0, 4.0, 64, 64, 0, 50.0)) == 12.5
    assert feeders(Measured(10.0, 0.0, 64, 64, 0, 50.0)) == 0
    costs = {**COSTS, "score": replace(COSTS["score"], cpus_per_gpu=12.5)}
    assert "CPUs that keep one GPU busy: score 13" in table(estimate(DEMO, costs, PHOTOS, Machines(64, 2)))
    for known, machines in ((costs, HERE), (COSTS, Machines(64, 2))):  # no GPU to keep busy; none was measured
        assert "keep one GPU busy" not in "\n".join(table(estimate(DEMO, known, PHOTOS, machines)))


def test_where_every_photo_meets_every_other_one():
    found = fit([measured(n, 2.0, 0.0, 0.01, power=2) for n in (16, 64, 256)], 2, 2)
    assert seconds(DEMO, {"refine": found}, {"train": 400, "val": 0}, HERE)["refine"] == pytest.approx(2 + 3200)


def test_noise_gives_no_cost_below_nothing():
    found = fit([Measured(30.0, 0, 16, 16, 0), Measured(20.0, 0, 64, 64, 0), Measured(25.0, 0, 256, 256, 0)], 1, 2)
    assert min(found.fixed, found.a_shard, found.seconds) >= 0 and found.fixed > 10


def test_a_photo_costs_what_was_computed_for_it():
    """All that grows in these runs could be the shards'; but the actors computed 0.1 s a photo."""
    runs = [Measured(5 + 0.5 * math.ceil(n / shard_size(n)), 0.1 * n, n, n, 0) for n in (16, 64, 256)]
    assert fit([run._replace(busy=0) for run in runs], 1, 2).seconds == pytest.approx(0, abs=1e-6)
    assert fit(runs, 1, 2).seconds >= 0.1 - 1e-9


def test_trainings_have_no_cost_a_shard():
    found = fit([measured(n, 8.0, 0.0, 0.01) for n in (16, 64, 256)], 1, 2, by_shard=False)
    assert (found.fixed, found.a_shard, found.seconds) == pytest.approx((8.0, 0.0, 0.01), abs=1e-6)


def test_more_photos_take_longer_by_the_line():
    found = seconds(DEMO, COSTS, PHOTOS, HERE)
    assert found == pytest.approx({"images": 3.5, "train_hcp": 40.0, "score": 54.0, "predict": 11.0})
    assert bytes_of(DEMO, COSTS, PHOTOS) == 100 * 150 + 1000 * 100 + 10 * 50


def test_more_machines_share_what_grows_and_not_what_is_fixed():
    assert seconds(DEMO, COSTS, PHOTOS, Machines(20, 0))["score"] == pytest.approx(9.0)
    assert gains(DEMO, COSTS, PHOTOS, HERE) == {"16 more CPUs": pytest.approx(1 - (17 + 91.5 / 9) / 108.5, abs=1e-2)}


def test_who_computes_where():
    big = Machines(128, 8)
    assert on("supervise", big) == 128 and on("score", big) == 8
    assert on("proposals", big) == 128  # the demo has no backbone that finds contours
    assert on("train_hcp", Machines(128, 0)) == 16
    assert on("train_segmenter", Machines(128, 64)) == DEMO.segmentation.batch_size // 2


def on(name: str, machines: Machines) -> float:
    (stage,) = [stage for stage in pipeline.stages_of(DEMO) if stage.name == name]
    return workers(DEMO, stage, machines)


def test_the_plan_names_the_longest_stage_and_what_to_add():
    found = table(estimate(DEMO, COSTS, {"train": 10**6, "val": 50}, HERE))
    assert found[0].split() == ["stage", "hours", "share", "machines"]
    assert "longest stage: score" in found and found[-1].startswith("to add first: 16 more CPUs")
    assert any("machine-hours" in line and "storage: 1.10 GB" in line for line in found)


@pytest.mark.parametrize(("pixels", "shards"), [(0, 9_766), (200_000, 62_500)])
def test_large_photos_make_more_files(pixels, shards):
    """As docs/scale.md has them: 1e7 photos of 400 x 500 pixels are in shards of 160, tiny ones in shards of 1,024."""
    costs = {name: replace(cost, pixels=pixels) for name, cost in COSTS.items()}
    found = estimate(DEMO, costs, {"train": 10**7, "val": 0}, HERE)
    tables = sum(name != "train_hcp" for name in costs) - 1  # `predict` has the val photos, none here
    assert found["files"] == tables * shards and found["requests"] == 10 * tables * shards + 4 * 10**7
    networks = len(DEMO.segmentation.networks)
    more = estimate(DEMO, costs, {"train": 10**7, "val": 32}, HERE)
    assert more["files"] - found["files"] >= 32 * networks + 1


def test_what_was_not_measured_is_said():
    assert "no GPU was measured" in cautions(DEMO, HERE, Machines(8, 1))[0]
    assert cautions(DEMO, HERE, HERE) == []
    frozen = recipe.load("demo", ["hcp.freeze=all"])
    assert "computed in every epoch" in cautions(frozen, HERE, HERE)[0]


def test_a_gpu_is_not_taken_for_a_cpu(tiny, monkeypatch):
    """It is said after the first of the three runs."""
    sizes = []

    def run(limited, place, until=None):
        sizes.append(limited.dataset.limit)
        RunDirectory.at(place).write_json({"cluster": {"CPU": 8, "GPU": 1}}, "status.json")

    monkeypatch.setattr(pipeline, "run", run)
    monkeypatch.setattr(plan, "_entry", lambda run, stage: None)
    with pytest.raises(RecipeError, match=r"measured on a GPU, and the cluster has none.*runtime\.use_gpu=false"):
        measure(recipe.load("demo", tiny), 12, Machines(64, 0))
    assert sizes == [0]


def test_a_stage_without_photos_costs_nothing():
    assert fit([Measured(1, 0, 0, 0, 0)] * 3, 1, 2.0) == Cost(0, 0, 0, 0, 1, 0, 2.0)


def test_a_training_of_no_epoch_costs_what_it_takes_to_begin():
    assert fit([Measured(9, 0, 0, n, 100) for n in (4, 16, 50)], 1, 2.0) == Cost(9, 0, 0, 0, 1, 2, 2.0)


def test_a_sample_larger_than_the_data_set(tiny):
    with pytest.raises(RecipeError, match="--sample 64: the data set has 12 training photos"):
        measure(recipe.load("demo", tiny), 64, HERE)


@pytest.mark.run
def test_three_runs_are_measured_and_deleted(tiny, monkeypatch):
    """Without Ray, of 12, 3 and 1 photos: every stage has a cost, and trainings have none a shard."""
    loaded = recipe.load("demo", [*tiny, "runtime.engine=local", "segmentation.networks=[FULL]"])
    places, real = [], pipeline.run

    def run(limited, place, until=None):
        places.append((limited.dataset.limit, place))
        return real(limited.model_copy(update={"dataset": loaded.dataset}), place, until)  # one photo is too few

    monkeypatch.setattr(pipeline, "run", run)
    costs, here, val = measure(loaded, 12, HERE)
    assert [limit for limit, _ in places] == [0, 3, 12] and not any(Path(place).exists() for _, place in places)
    assert list(costs) == [stage.name for stage in pipeline.stages_of(loaded)] and val == 12
    assert here.cpus >= 1 and all(cost.work > 0 and cost.bytes > 0 for cost in costs.values())
    assert costs["images"].work == 1 and costs["train_hcp"].work == 2 and costs["train_hcp"].a_shard == 0
    assert any("longest stage" in line for line in table(estimate(loaded, costs, {"train": 1000, "val": 10}, here)))
