"""Every registered name resolves, and to the variant that it promises."""

import pytest

from wsseg_ray.datasets import LAYOUTS, Layout, classes, coco, demo, folder, parquet, voc, webdataset
from wsseg_ray.proposals import SOURCES, Source, generate, masks, mcg
from wsseg_ray.refinement import KEEPS, METRICS, distance, selection
from wsseg_ray.registry import Registry
from wsseg_ray.segmentation.networks import NETWORKS, Network
from wsseg_ray.segmentation.objectives import OBJECTIVES, SMOOTHERS, cam, ccnn, em_adapt, ilp, mil_fcn
from wsseg_ray.supervision import MASKS, RANKINGS, READINGS, REFINERS, maps, readings
from wsseg_ray.supervision import masks as rough_masks

RESOLVED = [
    (
        LAYOUTS,
        {
            "folder": folder.LAYOUT,
            "voc": voc.LAYOUT,
            "coco": coco.LAYOUT,
            "classes": classes.LAYOUT,
            "parquet": parquet.LAYOUT,
            "webdataset": webdataset.LAYOUT,
            "demo": demo.LAYOUT,
        },
    ),
    (SOURCES, {"generate": generate.SOURCE, "mcg": mcg.SOURCE, "masks": masks.SOURCE}),
    (
        METRICS,
        {
            "squared_l2": distance.SQUARED_L2,
            "l2": distance.L2,
            "cosine": distance.COSINE,
            "nearest": distance.NEAREST,
        },
    ),
    (
        KEEPS,
        {
            "nearest": selection.nearest,
            "farthest": selection.farthest,
            "norm": selection.norm,
            "score": selection.score,
            "area": selection.area,
            "random": selection.random,
        },
    ),
    (READINGS, {"votes": readings.votes, "mean_score": readings.mean_score}),
    (MASKS, {"regions": rough_masks.best_regions, "sure": rough_masks.sure_superpixels}),
    (REFINERS, {"max": maps.divide_by_max}),
    (RANKINGS, {"sum": rough_masks.score_and_map, "map_iou": rough_masks.iou_with_map}),
    (
        OBJECTIVES,
        {
            "mil_fcn": mil_fcn.mil_fcn_loss,
            "em_adapt": em_adapt.em_adapt_loss,
            "ccnn": ccnn.ccnn_loss,
            "ilp": ilp.ilp_loss,
            "cam": cam.cam_loss,
        },
    ),
    (
        SMOOTHERS,
        {
            "superpixels": ilp.smooth_by_superpixels,
            "boxes": ilp.smooth_by_boxes,
            "regions": ilp.smooth_by_regions,
        },
    ),
]


@pytest.mark.parametrize(("registry", "variants"), RESOLVED, ids=lambda value: getattr(value, "kind", ""))
def test_every_name_resolves_to_its_variant(registry: Registry, variants):
    assert registry.names == list(variants)
    for name, variant in variants.items():
        assert registry.check(name) == name and registry.get(name) is variant
    assert registry.variants() == list(variants.values())
    with pytest.raises(ValueError, match=f"no {registry.kind} 'nonesuch'; there are {next(iter(variants))}"):
        registry.check("nonesuch")


def test_networks_have_their_own_name_and_what_they_name_is_there():
    for name in NETWORKS.names:
        network = NETWORKS.get(name)
        assert isinstance(network, Network) and network.name == name
        assert (network.target == "labels") == (network.objective != "")
        assert network.objective in ("", *OBJECTIVES.names) and network.smoother in ("", *SMOOTHERS.names)
        assert network.twin_of in ("", *NETWORKS.names)


def test_layouts_and_sources_say_how_they_work():
    assert all(isinstance(layout, Layout) for layout in LAYOUTS.variants())
    assert [name for name in LAYOUTS.names if LAYOUTS.get(name).draws] == ["demo"]
    for source in SOURCES.variants():
        assert isinstance(source, Source) and (source.from_photo is None) != (source.from_file is None)
        assert (source.suffix != "") == (source.from_file is not None)
