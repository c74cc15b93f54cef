"""Stage `features` on Ray, and what reads it: the same tables as in one process."""

import pytest

from tests.runs import same_rows
from tests.stages.test_features import settings
from wsseg_ray import pipeline, recipe
from wsseg_ray.storage import RunDirectory
from wsseg_ray.tables import FEATURES, SCORES


@pytest.mark.long
def test_on_ray_as_in_one_process(cluster, tiny, tmp_path):
    runs = []
    for engine in ("local", "ray"):
        own = [*settings(tiny, "test_efficientnet", "segmentation.networks=[AN_B]"), f"runtime.engine={engine}"]
        outcome = pipeline.run(recipe.load("demo", own), str(tmp_path / engine), "score")
        assert outcome.failed == {}
        runs.append(RunDirectory.at(str(tmp_path / engine)).now())
    for table in (FEATURES, SCORES):
        assert same_rows(*runs, table)
