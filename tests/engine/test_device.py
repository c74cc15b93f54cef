import torch

from wsseg_ray import recipe
from wsseg_ray.engine.device import device_of


def test_a_gpu_is_used_where_there_is_one_and_the_recipe_does_not_forbid_it(monkeypatch):
    for there, wish, expected in (
        (True, "auto", "cuda"),
        (True, "true", "cuda"),
        (True, "false", "cpu"),
        (False, "auto", "cpu"),
    ):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert device_of(recipe.load("demo", [f"runtime.use_gpu={wish}"])).type == expected
