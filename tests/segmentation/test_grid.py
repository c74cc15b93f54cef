"""The cells of a network's output, by the names of its parts."""

import pytest

from wsseg_ray.segmentation.grid import cell_stride, grid_size, is_centred, whole_crop

VIT = "timm:test_vit"
CNN = "timm:test_efficientnet"


@pytest.mark.parametrize(
    ("backbone", "head", "stride", "crop", "whole", "cells"),
    [
        ("vgg16", "largefov", 8, 321, 321, 41),
        ("vgg16", "largefov", 8, 322, 329, 42),
        (VIT, "linear", 16, 321, 336, 21),
        (CNN, "aspp", 16, 320, 320, 20),
        (CNN, "decoder", 8, 321, 336, 42),
    ],
)
def test_whole_cells(backbone, head, stride, crop, whole, cells):
    assert cell_stride(backbone, head) == stride
    assert whole_crop(backbone, head, crop) == whole
    assert grid_size(backbone, head, whole) == cells


def test_cells_are_centred_or_lie_side_by_side():
    assert is_centred("vgg16") and is_centred("torchvision:resnet50") and not is_centred(VIT)
