import numpy as np

from benchmarks.prediction import variants
from wsseg_ray.backbones.photos import normalise
from wsseg_ray.datasets.pixels import read_photo
from wsseg_ray.engine.stage import open_run
from wsseg_ray.segmentation.inference import photo_views
from wsseg_ray.stages.labels import segment
from wsseg_ray.stages.segmenters import network_named, trained
from wsseg_ray.storage import read_bytes
from wsseg_ray.tables import IMAGES


def test_its_variants_are_what_the_stage_gives(tiny_local):
    job = open_run(tiny_local[1])
    row = next(row for row in job.run.rows(IMAGES) if row.split == "val")
    photo = read_photo(read_bytes(row.uri))
    about = network_named(job.recipe, "SN_B")
    network = trained(job, about)
    found = variants(job, [network], photo, [1, 0.5])
    assert list(found)[4:] == ["CRF, share 1", "CRF, share 0.5"]
    assert all(own.shape == photo.shape[:2] and own.dtype == np.uint8 for (own,) in found.values())
    views = photo_views([network], normalise(photo))
    plain, smooth = segment(job.recipe, [about], photo, views)[0]
    assert np.array_equal(found["between cells"][0], plain) and np.array_equal(found["CRF, share 1"][0], smooth)
