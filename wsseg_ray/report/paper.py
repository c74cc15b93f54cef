"""The numbers that the paper prints for PASCAL VOC 2012 val, in percent.

Source: Y. Wei, X. Liang, Y. Chen, Z. Jie, Y. Xiao, Y. Zhao and S. Yan, "Learning to Segment with Image-level
Annotations", Pattern Recognition, 2016, doi 10.1016/j.patcog.2016.01.015, Tables 1, 3 and 4.
"""

from __future__ import annotations

import numpy as np

NETWORKS = ("AN_A", "SN_A", "AN_B", "SN_B")  # the columns of Table 1
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


# Table 4, val: IoU of ILP, ILP-sppxl, ILP-bb, ILP-seg and CCNN; for MIL-FCN and EM-Adapt it has only the mean
RIVALS_VAL_IOU = {
    "background": (73.2, 77.2, 78.6, 79.6, 65.9),
    "aeroplane": (25.4, 37.3, 46.9, 50.2, 23.8),
    "bicycle": (18.2, 18.4, 18.6, 21.6, 17.6),
    "bird": (22.7, 25.4, 27.9, 40.6, 22.8),
    "boat": (21.5, 28.2, 30.7, 34.9, 19.4),
    "bottle": (28.6, 31.9, 38.4, 40.5, 36.2),
    "bus": (39.5, 41.6, 44.0, 45.9, 47.3),
    "car": (44.7, 48.1, 49.6, 51.5, 46.9),
    "cat": (46.6, 50.7, 49.8, 60.6, 47.0),
    "chair": (11.9, 12.7, 11.6, 12.6, 16.3),
    "cow": (40.4, 45.7, 44.7, 51.2, 36.1),
    "diningtable": (11.8, 14.6, 14.6, 11.6, 22.2),
    "dog": (45.6, 50.9, 50.4, 56.8, 43.2),
    "horse": (40.1, 44.1, 44.7, 52.9, 33.7),
    "motorbike": (35.5, 39.2, 40.8, 44.8, 44.9),
    "person": (35.2, 37.9, 38.5, 42.7, 39.8),
    "pottedplant": (20.8, 28.3, 26.0, 31.2, 29.9),
    "sheep": (41.7, 44.0, 45.0, 55.4, 33.4),
    "sofa": (17.0, 19.6, 20.5, 21.5, 22.2),
    "train": (34.7, 37.6, 36.9, 38.8, 38.8),
    "tvmonitor": (30.4, 35.0, 34.8, 36.9, 36.3),
}
RIVALS_BY_CLASS = ("ILP", "ILP_SPPXL", "ILP_BB", "ILP_SEG", "CCNN")
RIVALS_VAL_MIOU = {
    "MIL_FCN": 25.7,
    "EM_ADAPT": 38.2,
    **dict(zip(RIVALS_BY_CLASS, (32.6, 36.6, 37.8, 42.0, 34.5), strict=True)),
}


def val_rows(classes: list[str]) -> list[tuple[float, ...]]:
    """Table 1's val columns for some of VOC's classes: background, the classes in order, then the mean.

    With all 20 classes the last row is the mIoU that the paper prints (for two columns 0.1 above their mean); with
    fewer classes it is the mean over the rows.

    Arguments:
        classes: names of VOC, without background.
    Returns len(classes) + 2 rows of IoU in percent, in the order of `NETWORKS`.
    Raises KeyError for a name that is not a class of VOC.
    """
    rows = [VAL_IOU[name] for name in ("background", *classes)]
    mean = tuple(VAL_MIOU.values()) if len(rows) == len(VAL_IOU) else tuple(np.mean(rows, axis=0).tolist())
    return [*rows, mean]


def rival_val(name: str, classes: list[str]) -> float | None:
    """Table 4's mean of a rival over background and some of VOC's classes; None if the paper has no numbers for it.

    Raises KeyError for a name that is not a class of VOC.
    """
    if len(classes) + 1 == len(RIVALS_VAL_IOU):
        return RIVALS_VAL_MIOU[name]
    if name not in RIVALS_BY_CLASS:
        return None
    column = RIVALS_BY_CLASS.index(name)
    return float(np.mean([RIVALS_VAL_IOU[label][column] for label in ("background", *classes)]))
