"""The numbers that the paper prints for PASCAL VOC 2012 val, in percent.

Source: Y. Wei, X. Liang, Y. Chen, Z. Jie, Y. Xiao, Y. Zhao and S. Yan, "Learning to Segment with Image-level
Annotations", Pattern Recognition, 2016, doi 10.1016/j.patcog.2016.01.015, Tables 1 and 3.
"""

from __future__ import annotations

import numpy as np

from wsseg_ray.recipe import NETWORKS

CITATION = "Wei et al., “Learning to Segment with Image-level Annotations”, Pattern Recognition, 2016"

# Table 1, val: IoU of AN_A, SN_A, AN_B, SN_B
VAL_IOU = {
    "background": (69.4, 74.6, 81.0, 80.7),
    "aeroplane": (37.6, 40.8, 56.6, 54.6),
    "bicycle": (15.6, 17.3, 7.1, 10.7),
    "bird": (26.6, 32.0, 56.9, 55.6),
    "boat": (26.4, 28.5, 39.2, 37.5),
    "bottle": (35.5, 41.0, 39.5, 51.8),
    "bus": (63.9, 58.0, 41.7, 46.3),
    "car": (52.9, 51.0, 29.8, 42.6),
    "cat": (54.1, 54.8, 44.7, 48.0),
    "chair": (14.1, 16.0, 16.5, 16.0),
    "cow": (43.9, 47.9, 47.3, 46.3),
    "diningtable": (31.3, 19.5, 18.2, 10.0),
    "dog": (47.9, 51.7, 54.9, 54.6),
    "horse": (39.7, 43.5, 48.3, 45.9),
    "motorbike": (45.0, 50.0, 46.6, 47.5),
    "person": (48.3, 41.6, 34.2, 34.4),
    "pottedplant": (27.9, 25.2, 23.1, 24.5),
    "sheep": (54.4, 53.5, 53.0, 53.7),
    "sofa": (25.2, 25.5, 24.4, 23.0),
    "train": (43.3, 48.3, 42.0, 47.8),
    "tvmonitor": (28.3, 30.8, 47.7, 48.6),
}
VAL_MIOU = dict(zip(NETWORKS, (39.7, 40.6, 40.6, 41.9), strict=True))  # Table 1, val: over all 21 classes
UNREFINED_VAL_MIOU = {"AN_A": 37.7, "SN_A": 38.6}  # Table 3: without the cross-image refinement


def val_rows(classes: list[str]) -> list[tuple[float, ...]]:
    """Table 1's val columns for some of VOC's classes: background, the classes in order, then the mean.

    With all 20 classes the last row is the mIoU that the paper prints (0.1 above the mean of two of its columns),
    with fewer the mean over the rows shown.

    Arguments:
        classes: names of VOC, without background.
    Returns len(classes) + 2 rows of IoU in percent, in the order of `recipe.NETWORKS`.
    Raises KeyError for a name that VOC does not have.
    """
    rows = [VAL_IOU[name] for name in ("background", *classes)]
    mean = tuple(VAL_MIOU.values()) if len(rows) == len(VAL_IOU) else tuple(np.mean(rows, axis=0).tolist())
    return [*rows, mean]
