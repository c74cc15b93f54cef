"""Which photos the report shows."""

from __future__ import annotations

from tests.runs import empty_job
from wsseg_ray import pipeline
from wsseg_ray.engine.stage import open_run
from wsseg_ray.stages import pictures
from wsseg_ray.tables import SUPERVISION, ImageRow, SupervisionRow


def test_a_photo_that_is_gone_is_left_out(tiny_local, monkeypatch, capsys):
    """The report is made when all else is done: a photo that was moved since must not cost it."""
    job, real = open_run(tiny_local[1]), pictures.photo_of
    stages = [stage for stage in pipeline.stages_of(job.recipe) if stage.name in ("supervise", "predict")]
    shown = [[strip.image_id for strip in stage.strips(job)] for stage in stages]
    gone = {names[0] for names in shown}

    def photo_of(job, row):
        if row.image_id in gone:
            raise FileNotFoundError("No such file")
        return real(job, row)

    monkeypatch.setattr(pictures, "photo_of", photo_of)
    left = [[strip.image_id for strip in stage.strips(job)] for stage in stages]
    assert left == [[name for name in names if name not in gone] for names in shown] and all(left)
    told = capsys.readouterr().err
    assert all(f"the report leaves out {name}: No such file" in told for name in gone)


def test_they_are_chosen_out_of_some_shards(tmp_path):
    """The driver must not look at each photo of a large data set."""
    job, count = empty_job(tmp_path), 2 * pictures.SHARDS + 3
    for number in range(count):
        job.run.write_shard(SUPERVISION, f"train-{number:05d}", [SupervisionRow(f"p{number}")])
        job.run.write_shard(pictures.IMAGES, f"train-{number:05d}", [ImageRow(f"p{number}", split="train")])
    some = pictures.some_shards(job, SUPERVISION, "train")
    assert some[0] == "train-00000" and len(some) == len(set(some)) <= pictures.SHARDS and some[-1] > "train-00120"
    shown = [shard for shard, *_ in pictures.chosen(job, SUPERVISION, "train")]
    assert len(shown) == 7 and set(shown) < set(some) and shown == sorted(shown)
