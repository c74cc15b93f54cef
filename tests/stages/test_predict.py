import torch
from torch import nn

from wsseg_ray import recipe
from wsseg_ray.hcp.trunk import normalise
from wsseg_ray.segmentation.inference import photo_views
from wsseg_ray.stages import predict
from wsseg_ray.stages.job import open_run
from wsseg_ray.stages.predict import Predictor, RememberingTrunk
from wsseg_ray.stages.rows import add_photo
from wsseg_ray.stages.segmenters import trained


def test_a_shared_trunk_looks_once_at_a_photo():
    seen = []
    trunk = RememberingTrunk(nn.Identity())
    trunk._trunk.register_forward_hook(lambda *_: seen.append(1))
    one, other = torch.ones(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)
    answers = [trunk(photo) for photo in (one, one, other, one)]
    assert len(seen) == 3 and [int(answer.max()) for answer in answers] == [1, 1, 0, 1]


def test_every_network_says_of_a_photo_what_it_says_alone(tiny_run):
    """With several views, of which some are other tensors and some are not."""
    job = open_run(tiny_run[1].root)
    (shard, *_) = job.run.shards("images", "val")
    row = add_photo(job, predict.photo_rows(job, shard, 1)[0])
    views = {"scales": [1.0, 0.5], "mirror": True}
    for freeze in ("none", "all"):
        frozen = recipe.validate(
            job.recipe.model_dump() | {"segmentation": job.recipe.segmentation.model_dump() | {"freeze": freeze}}
        )
        names = ["SN_B"] if freeze == "none" else ["SN_B", "SN_B"]
        answers = Predictor(type(job)(job.run, frozen, job.listing), names, **views)(row)["views"]
        (alone,) = photo_views([trained(job, "SN_B")], normalise(row["photo"]), **views)
        assert len(answers) == len(names)
        for answer in answers:
            assert all(torch.equal(view.logits, own.logits) for view, own in zip(answer, alone, strict=True))
