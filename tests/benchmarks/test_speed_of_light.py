import re

from benchmarks.speed_of_light import against_floor, floor_of, thread_of
from wsseg_ray import pipeline
from wsseg_ray.engine.stage import open_run
from wsseg_ray.stages import score


def test_each_stage_of_a_run_has_a_floor_that_its_table_needs(tiny_local):
    job = open_run(tiny_local[1])
    stages = [stage for stage in pipeline.stages_of(job.recipe) if stage.writes in job.run.results]
    assert {"images", "proposals", "score", "refine", "supervise", "train_segmenter", "predict"} <= {
        stage.name for stage in stages
    }
    for stage in stages:
        line = against_floor(job, stage, 1, cores=2)
        form = r"floor +[\d.]+ \(on one core: .*\): \d+%" if stage.work else r"computing in \d+% of the time"
        assert re.fullmatch(rf"took +[\d.]+; {form}", line), line
    before = {table: job.run.shards(table) for table in ("images", "scores")}
    assert all(value > 0 for value in floor_of(job, score.STAGE, before["scores"][:1]))
    assert {table: job.run.shards(table) for table in before} == before  # nothing was written into the run


def test_an_actors_thread_passes_on_what_the_table_has(tiny_local):
    job = open_run(tiny_local[1])
    found = thread_of(job, score.STAGE, job.run.shards("scores", "train")[:1], launch=0.0)
    assert found["photos"] > 0 and found["ms"] > 0 and found["operations"] >= 1 and found["to"] > found["from"] > 0
