"""A key that does not exist is named with those that do, also in a list of sections and in sections by name."""

import pytest

from wsseg_ray import recipe
from wsseg_ray.errors import RecipeError


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("seeds=1", r"seeds: no such key; there are seed, dataset, "),
        ("crf.width=1", r"crf\.width: no such key; there are enabled, iterations, "),
        ("segmentation.rivals.epochs=1", r"segmentation\.rivals\.epochs: no such key; there are start_epochs, "),
        ("runtime.stages.score.gpu=1", r"runtime\.stages\.score\.gpu: no such key; there are cpus, memory_gb, "),
        ("runtime.cluster=[{cpus: 8, gpu: 1}]", r"runtime\.cluster\.0\.gpu: no such key; there are cpus, gpus, "),
    ],
)
def test_a_key_that_does_not_exist(setting, message):
    with pytest.raises(RecipeError, match=message):
        recipe.load("demo", [setting])
