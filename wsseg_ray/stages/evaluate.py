"""What a run measured, out of its tables: `metrics.json`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from wsseg_ray.evaluation import iou
from wsseg_ray.recipe import KEEPS
from wsseg_ray.stages import predict, score, segmenters, supervise, train_hcp
from wsseg_ray.stages.job import Job


def metrics(job: Job, stages: list[str]) -> dict[str, Any]:
    """Every number of the run, from its tables; IoU values are percentages.

    Arguments:
        stages: those that ran or were done before; later ones are left out, for what they left may be stale.
    """
    parts = {
        "images": ("data", _data),
        "train_hcp": ("hcp", _hcp),
        "score": ("candidates", _candidates),
        "supervise": ("supervision", _supervision),
        "predict": ("networks", _networks),
    }
    found = {key: measure(job) for stage, (key, measure) in parts.items() if stage in stages}
    if "score" in stages:
        found["hcp"] |= _val_precision(job) | {"pca": score.read_pca(job)[2]}
    return _plain({"classes": job.classes, "stages": {name: _stage(job, name) for name in stages}, **found})


def failures(job: Job, stages: list[str]) -> list[dict[str, str]]:
    """Every photo that could not be processed: image_id, stage, error."""
    return [failure for stage in stages for failure in job.run.read_json("failures", f"{stage}.json") or []]


def _stage(job: Job, name: str) -> dict[str, float]:
    entry = job.run.read_json("stages", f"{name}.json")
    rate = entry["worked"] / entry["seconds"] if entry["seconds"] else math.nan
    return {**{key: entry[key] for key in ("rows", "failed", "seconds")}, "rows_per_second": rate}


def _data(job: Job) -> dict[str, int]:
    counts = dict.fromkeys(("train", "val", "single_label", "train_with_masks"), 0)
    for row in job.run.rows("images", ["error", "split", "labels", "mask_uri"]):
        if not row["error"]:
            train = row["split"] == "train"
            counts[row["split"]] += 1
            counts["single_label"] += train and len(row["labels"]) == 1
            counts["train_with_masks"] += train and bool(row["mask_uri"])
    return counts


def _hcp(job: Job) -> dict[str, Any]:
    return {"log": train_hcp.read_log(job)}


def _val_precision(job: Job) -> dict[str, Any]:
    precision = score.val_precision(job)
    found = [ap for ap in precision.values() if not math.isnan(ap)]
    return {"ap": precision, "val_map": float(np.mean(found)) if found else math.nan}


def _candidates(job: Job) -> dict[str, dict[str, int]]:
    found = {name: dict.fromkeys(("photos", "candidates", "fallback"), 0) for name in job.classes}
    for row in job.run.rows("scores", ["error", "labels", "candidate_label", "fallback"]):
        for label, fallback in zip(row["labels"], row["fallback"], strict=True):
            entry = found[job.classes[label]]
            entry["photos"] += 1
            entry["candidates"] += int((row["candidate_label"] == label).sum())
            entry["fallback"] += int(fallback)
    return found


def _supervision(job: Job) -> dict[str, Any]:
    classes = len(job.classes) + 1
    shape = (1 + len(KEEPS), supervise.ASSIGNMENTS, classes, classes)
    total, photos = np.zeros(shape, np.int64), 0
    overlaps: list[list[float]] = [[] for _ in job.classes]
    for row in job.run.rows("supervision", ["error", "labels", "candidate_iou", "quality"]):
        if len(row["quality"]):
            total += row["quality"].reshape(shape)
            photos += 1
            for label, overlap in zip(row["labels"], row["candidate_iou"], strict=True):
                overlaps[label].append(overlap)
    if not photos:
        return {"photos": 0}
    in_use = _supervision_quality(total[0])
    settings = job.recipe.refinement
    return {
        "photos": photos,
        "keep": settings.keep if settings.enabled else "none",
        **in_use,
        "candidate_iou": {
            name: float(np.mean(own)) if own else math.nan for name, own in zip(job.classes, overlaps, strict=True)
        },
        "candidate_miou": float(np.mean(np.concatenate(overlaps))),
        "iou": {
            "localization": _by_class(job, total[0, 0]),
            "localization_best": _by_class(job, total[0, 2 + _best(total[0])]),
            "rough_mask": _by_class(job, total[0, 1]),
        },
        "ablation": {keep: _supervision_quality(part) for keep, part in zip(KEEPS, total[1:], strict=True)},
    }


def _supervision_quality(confusions: np.ndarray) -> dict[str, float]:
    """mIoU of one variant's assignments (argmax, rough mask, thresholds)."""
    best = _best(confusions)
    return {
        "localization_miou": iou.miou(confusions[0]),
        "localization_best_miou": iou.miou(confusions[2 + best]),
        "localization_best_threshold": float(iou.THRESHOLDS[best]),
        "rough_mask_miou": iou.miou(confusions[1]),
    }


def _best(confusions: np.ndarray) -> int:
    return int(np.argmax([iou.miou(confusion) for confusion in confusions[2:]]))


def _networks(job: Job) -> dict[str, Any]:
    names = segmenters.networks(job.recipe)
    classes = len(job.classes) + 1
    total, photos = np.zeros((len(names), 2, classes, classes), np.int64), 0
    for row in job.run.rows(predict.TABLE, ["error", "confusion"]):
        if len(row["confusion"]):
            total += row["confusion"].reshape(total.shape)
            photos += 1
    found = {}
    for name, (plain, crf) in zip(names, total, strict=True):
        val = {"photos": photos}
        if photos:
            val |= {"miou": iou.miou(plain), "iou": _by_class(job, plain)}
        if photos and job.recipe.crf.enabled:
            val |= {"miou_crf": iou.miou(crf), "iou_crf": _by_class(job, crf)}
        found[name] = {"val": val, "log": segmenters.read_log(job, name)}
    return found


def _by_class(job: Job, confusion: np.ndarray) -> dict[str, float]:
    return dict(zip(["background", *job.classes], iou.iou(confusion).tolist(), strict=True))


def _plain(value: Any) -> Any:
    """NaN as None: JSON knows no NaN."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value
