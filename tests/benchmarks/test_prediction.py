import numpy as np

from benchmarks.prediction import variants
from wsseg_ray.backbones.photos import normalise
from wsseg_ray.segmentation.inference import photo_views
from wsseg_ray.stages.job import open_run
from wsseg_ray.stages.labels import segment
from wsseg_ray.stages.rows import add_photo
from wsseg_ray.stages.segmenters import trained


def test_its_variants_are_what_the_stage_gives(tiny_run):
    job = open_run(tiny_run[1].root)
    (shard, *_) = job.run.shards("images", "val")
    photo = add_photo(job, next(iter(job.run.read_good("images", shard).values())))["photo"]
    network = trained(job, "SN_B")
    found = variants(job, [network], photo, [1, 0.5])
    assert list(found)[4:] == ["CRF, share 1", "CRF, share 0.5"]
    assert all(own.shape == photo.shape[:2] and own.dtype == np.uint8 for (own,) in found.values())
    views = photo_views([network], normalise(photo))
    plain, smooth = segment(job.recipe, ["SN_B"], photo, views)[0]
    assert np.array_equal(found["between cells"][0], plain) and np.array_equal(found["CRF, share 1"][0], smooth)
