"""The report: one HTML file that opens offline and shows a run's photos, tables and charts.

`render` makes the page from the numbers of `metrics.json` and a few photos. The functions below it compute each table
and chart as plain values; `page.html` only prints them, everything escaped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache
from numbers import Real
from typing import Any, cast

import numpy as np
from jinja2 import Template

from wsseg_ray.datasets.pixels import VOID, voc_palette
from wsseg_ray.recipe import VOC_CLASSES
from wsseg_ray.report import paper
from wsseg_ray.report.pictures import HEAT_STOPS, map_uri, mask_uri, photo_uri
from wsseg_ray.report.templates import template

DASH = "–"
LARGE_GAP = 10.0  # points of mIoU between the maps' argmax and their best threshold: from here on the page warns
SHOWN_FAILURES = 50
ROW_OF_PICTURES = 8  # pictures side by side on a wide screen
CHART = (206, 84)  # width and height of a curve's plot, in SVG units


@dataclass(frozen=True)
class Strip:
    """The pictures of one photo, all of height H and width W.

    Arguments:
        image_id: the photo's name.
        split: `train`: shown with `maps` and `rough`; `val`: shown with `predictions`.
        photo: (H, W, 3) uint8.
        labels: names of the photo's labels.
        maps: name and (H, W) float map in 0..1 of each label.
        rough: (H, W) uint8: 0 background, i + 1 class i, 255 void.
        predictions: name of the network, such as `SN_B + CRF`, and its (H, W) uint8 mask.
        truth: (H, W) uint8, values as in `rough`.
        score: how good the one prediction is on this photo, in percent: it is shown in the gallery.
        measure: what `score` is: `mIoU`, or `agreement` with the names of what is in the photo.
    """

    image_id: str
    split: str
    photo: np.ndarray
    labels: list[str] = field(default_factory=list)
    maps: list[tuple[str, np.ndarray]] = field(default_factory=list)
    rough: np.ndarray | None = None
    predictions: list[tuple[str, np.ndarray]] = field(default_factory=list)
    truth: np.ndarray | None = None
    score: float | None = None
    measure: str = "mIoU"


def render(
    title: str,
    metrics: dict[str, Any],
    classes: list[str],
    strips: list[Strip],
    failures: list[dict[str, Any]],
    recipe_yaml: str,
    command: str = "",
) -> str:
    """The report page: self-contained HTML, no script, no request.

    Arguments:
        title: the page's heading.
        metrics: `metrics.json`. Any key may be missing, as in a run that has not finished; NaN and None show as a dash.
        classes: the run's classes in order, without background.
        strips: photos to show. A strip adds about 50 kB to the page.
        failures: rows that could not be processed: `image_id`, `stage`, `error`.
        recipe_yaml: the complete recipe.
        command: the command that repeats this run.
    Returns the page. It always encodes as UTF-8: other characters are replaced by question marks.
    """
    palette = [_hex(colour) for colour in voc_palette()]
    page = _template().render(
        title=title,
        classes=classes,
        colours=dict(zip(classes, palette[1:], strict=False)),
        void=palette[VOID],
        ramp=[_hex(colour) for colour in HEAT_STOPS],
        data={key: _at(metrics, "data", key) for key in ("train", "val", "single_label", "train_with_masks")},
        headline=_headline(metrics),
        training=[_figures(strip) for strip in strips if strip.split != "val"],
        unseen=[_figures(strip) for strip in strips if strip.split == "val" and strip.score is None],
        gallery=sorted(
            (_figures(strip) for strip in strips if strip.score is not None), key=lambda row: cast(float, row["score"])
        ),
        networks=_networks(metrics, classes),
        refined=_at(metrics, "supervision", "keep") != "none",
        votes=_at(metrics, "supervision", "reading") in (None, "votes"),
        refinement=_refinement(metrics),
        rivals=_rivals(metrics, classes),
        supervision=_supervision(metrics, classes),
        ablation=_ways(metrics, "ablation", _at(metrics, "supervision", "keep")),
        readings=_ways(metrics, "readings", _at(metrics, "supervision", "reading")),
        candidates=_candidates(metrics, classes),
        hcp=_hcp(metrics),
        losses=_network_losses(metrics),
        waited=_waited(metrics),
        stages=_stages(metrics),
        failures=failures[:SHOWN_FAILURES],
        failed=len(failures),
        recipe_yaml=recipe_yaml,
        command=command,
        paper=paper,
    )
    return page.encode("utf-8", "replace").decode("utf-8")


@cache
def _template() -> Template:
    filters = {"num": _number, "signed": _signed, "duration": _duration, "percent": _percent}
    return template("page.html", filters)


def _at(tree: Any, *keys: str) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _finite(value: Any) -> float | None:
    return cast(float, value) if isinstance(value, Real) and math.isfinite(value) else None


def _best(values: list[Any]) -> float | None:
    return max((value for value in values if _finite(value) is not None), default=None)


def _difference(a: Any, b: Any) -> float | None:
    return None if _finite(a) is None or _finite(b) is None else a - b


def _share(part: Any, whole: Any) -> float | None:
    return None if _finite(part) is None or not _finite(whole) else part / whole


def _number(value: Any, digits: int = 1) -> str:
    return DASH if _finite(value) is None else f"{value:,.{digits}f}"


def _signed(value: Any) -> str:
    return DASH if _finite(value) is None else f"{value:+.1f}".replace("-", "−")


def _percent(share: Any) -> str:
    if _finite(share) is None:
        return DASH
    return "< 1 %" if 0 < share < 0.005 else f"{100 * share:.0f} %"


def _duration(seconds: Any) -> str:
    if _finite(seconds) is None:
        return DASH
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _hex(colour: np.ndarray) -> str:
    return "#" + colour.astype(np.uint8).tobytes().hex()


def _headline(metrics: dict[str, Any]) -> dict[str, Any]:
    """The mIoU of SN_B, or of the best weak network if there is no SN_B; the better value of without and with CRF."""
    kinds = _kinds(metrics)
    weak = [
        (score, name, key)
        for name, kind in kinds.items()
        for key in ("miou", "miou_crf")
        if kind != "ceiling" and (score := _finite(_at(metrics, "networks", name, "val", key))) is not None
    ]
    chosen = [one for one in weak if one[1] == "SN_B"] or weak
    miou, network, key = max(chosen, key=lambda one: one[0], default=(None, None, "miou"))
    ceiling = _finite(_at(metrics, "networks", _ceiling(kinds), "val", key))
    return {
        "network": network,
        "crf": key == "miou_crf",
        "miou": miou,
        "ceiling": ceiling,
        "share": _share(miou, ceiling),
        "photos": sum(_finite(_at(metrics, "data", split)) or 0 for split in ("train", "val")) or None,
        "seconds": _seconds(metrics),
    }


def _kinds(metrics: dict[str, Any]) -> dict[str, Any]:
    """The kind of each network: `paper` (the paper's own), `rival`, `cam`, `ceiling`, or None for others.

    Networks that were trained without the refinement are left out: they have their own table.
    """
    networks = _at(metrics, "networks") or {}
    return {name: _at(about, "kind") for name, about in networks.items() if not _at(about, "unrefined_of")}


def _of_kind(kinds: dict[str, Any], *wanted: str) -> list[str]:
    return [name for name, kind in kinds.items() if kind in wanted]


def _ceiling(kinds: dict[str, Any]) -> str:
    return next(iter(_of_kind(kinds, "ceiling")), "")


def _seconds(metrics: dict[str, Any]) -> float | None:
    seconds = [_finite(_at(stage, "seconds")) for stage in (_at(metrics, "stages") or {}).values()]
    return sum(second for second in seconds if second is not None) or None


def _figures(strip: Strip) -> dict[str, Any]:
    """A strip's photo and, in reading order, the transparent overlays on it."""
    masks = [*([("rough mask", strip.rough)] if strip.rough is not None else []), *strip.predictions]
    if strip.truth is not None:
        masks.append(("truth", strip.truth))
    overlays = [
        *({"name": f"{name} map", "uri": map_uri(heat)} for name, heat in strip.maps),
        *({"name": name, "uri": mask_uri(mask)} for name, mask in masks),
    ]
    pictures = len(overlays) + 1
    return {
        "image_id": strip.image_id,
        "labels": strip.labels,
        "photo": photo_uri(strip.photo),
        "overlays": overlays,
        "score": strip.score,
        "measure": strip.measure,
        "columns": math.ceil(pictures / math.ceil(pictures / ROW_OF_PICTURES)),  # rows of equal length
    }


def _networks(metrics: dict[str, Any], classes: list[str]) -> dict[str, Any] | None:
    """The paper's Table 1: one row per class and the mean; per network one column without and one with CRF."""
    kinds = _kinds(metrics)
    if not kinds:
        return None
    names = list(kinds)
    vals = {name: _at(metrics, "networks", name, "val") for name in names}
    crf = any(_has_crf(val) for val in vals.values())
    columns = [(name, suffix) for name in names for suffix in (("", "_crf") if crf else ("",))]
    voc = set(classes) <= set(VOC_CLASSES)
    labels = ["background", *classes]
    printed = paper.val_rows(classes) if voc else [()] * (len(labels) + 1)
    scores = [[_at(vals[n], f"iou{suffix}", label) for n, suffix in columns] for label in labels]
    scores.append([_at(vals[n], f"miou{suffix}") for n, suffix in columns])
    weak = [kinds[n] != "ceiling" for n, _ in columns]
    rows = [
        {"name": label, "cells": _marked(row, weak), "paper": reference}
        for label, row, reference in zip([*labels, "mIoU"], scores, printed, strict=True)
    ]
    return {
        "names": names,
        "crf": crf,
        "ceiling": _ceiling(kinds),
        "cam": "cam" in kinds.values(),
        "rivals": _of_kind(kinds, "rival"),
        "rows": rows,
        "paper": paper.NETWORKS if voc else (),
        "subset": len(classes) < len(VOC_CLASSES),
    }


def _has_crf(val: Any) -> bool:
    return _finite(_at(val, "miou_crf")) is not None or bool(_at(val, "iou_crf"))


def _marked(row: list[Any], counts: list[bool]) -> list[dict[str, Any]]:
    """The cells of a row. The best cell among those where `counts` is True is marked."""
    best = _best([score for score, counted in zip(row, counts, strict=True) if counted])
    return [
        {"value": score, "best": counted and best is not None and score == best}
        for score, counted in zip(row, counts, strict=True)
    ]


def _refinement(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """The paper's Table 3: mIoU of every network that was trained with and without the refinement."""
    rows = []
    networks = _at(metrics, "networks") or {}
    for about in networks.values():
        if name := _at(about, "unrefined_of"):
            without, refined = _at(about, "val"), _at(networks, name, "val")
            pairs = [(_at(without, key), _at(refined, key)) for key in ("miou", "miou_crf")]
            rows.append({"name": name, "pairs": [(a, b, _difference(b, a)) for a, b in pairs]})
    return rows


def _rivals(metrics: dict[str, Any], classes: list[str]) -> list[dict[str, Any]]:
    """The paper's Table 4: mIoU of each method without and with CRF, and the paper's numbers; also of SN_B and CAM."""
    found = _at(metrics, "networks") or {}
    kinds = _kinds(metrics)
    names = _of_kind(kinds, "rival", "cam")
    names += ["SN_B"] * ("SN_B" in found and bool(names))
    voc = set(classes) <= set(VOC_CLASSES)
    ours = dict(zip(paper.NETWORKS, paper.val_rows(classes)[-1], strict=True)) if voc else {}
    rows = [
        {
            "name": name,
            "scores": [_at(found[name], "val", key) for key in ("miou", "miou_crf")],
            "shown": paper.rival_val(name, classes) if voc and kinds[name] == "rival" else ours.get(name),
            "printed": {**paper.RIVALS_VAL_MIOU, **paper.VAL_MIOU}.get(name),
        }
        for name in names
    ]
    return rows


def _supervision(metrics: dict[str, Any], classes: list[str]) -> dict[str, Any] | None:
    """IoU of the supervision: the maps by argmax and at their best threshold, and the rough masks."""
    table = _at(metrics, "supervision")
    if table is None:
        return None
    kinds = ("localization", "localization_best", "rough_mask")
    rows = [
        {"name": name, "cells": [_at(table, "iou", kind, name) for kind in kinds]} for name in ["background", *classes]
    ]
    rows.append({"name": "mIoU", "cells": [_at(table, f"{kind}_miou") for kind in kinds]})
    gap = _difference(_at(table, "localization_best_miou"), _at(table, "localization_miou"))
    return {
        "photos": _at(table, "photos"),
        "threshold": _at(table, "localization_best_threshold"),
        "unknown": _at(table, "rough_mask_unknown"),
        "rows": rows,
        "gap": gap if gap is not None and gap >= LARGE_GAP else None,
    }


def _ways(metrics: dict[str, Any], name: str, used: str | None) -> list[dict[str, Any]]:
    """Quality of the supervision for every way of one kind, the best of each column marked.

    Arguments:
        name: `ablation`, ways to choose the kept candidates, or `readings` of the scores.
        used: the way that the recipe has.
    """
    table = _at(metrics, "supervision", name) or {}
    columns = ("localization_miou", "localization_best_miou", "rough_mask_miou")
    best = {column: _best([_at(table, way, column) for way in table]) for column in columns}
    return [
        {
            "name": way,
            "used": way == used,
            "threshold": _at(table, way, "localization_best_threshold"),
            "cells": [
                {"value": value, "best": _finite(value) is not None and value == best[column]}
                for column in columns
                for value in [_at(table, way, column)]
            ],
        }
        for way in table
    ]


def _candidates(metrics: dict[str, Any], classes: list[str]) -> list[dict[str, Any]]:
    """Per class: average precision of HCP, photos, candidates, photos without a candidate, IoU with the true mask."""
    counts, precision = _at(metrics, "candidates"), _at(metrics, "hcp", "ap")
    overlaps = _at(metrics, "supervision", "candidate_iou")
    if counts is None and precision is None:
        return []
    rows = []
    for name in classes:
        photos, candidates = _at(counts, name, "photos"), _at(counts, name, "candidates")
        rows.append(
            {
                "name": name,
                "ap": _at(precision, name),
                "photos": photos,
                "candidates": candidates,
                "mean": _share(candidates, photos),
                "fallback": _at(counts, name, "fallback"),
                "iou": _at(overlaps, name),
            }
        )
    return rows


def _hcp(metrics: dict[str, Any]) -> dict[str, Any] | None:
    """HCP's training: its loss in all phases, its precision, and the dimensions and energy that PCA kept."""
    table = _at(metrics, "hcp")
    if table is None:
        return None
    log = _at(table, "log") or []
    phases = {"whole photos": "image", "regions": "hypothesis", "regions by maps": "region"}
    series = {
        name: [_at(row, "loss") for row in log if str(_at(row, "step")).split("-")[0] == step]
        for name, step in phases.items()
    }
    return {
        "curve": _curve(series),
        "rounds": len({step for row in log if (step := str(_at(row, "step"))).startswith("region")}),
        "val_map": _at(table, "val_map"),
        "dims": _at(table, "pca", "dims"),
        "energy": _at(table, "pca", "energy"),
    }


def _network_losses(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """Loss per epoch of every network with a log, unrefined networks included; one series per round."""
    curves = {}
    for name, log in _logs(metrics).items():
        series: dict[str, list[Any]] = {}
        for row in log:
            round_ = _at(row, "round")
            series.setdefault(f"round {round_}" if round_ else name, []).append(_at(row, "loss"))
        curves[name] = _curve(series)
    return [{"name": name, "curve": curve} for name, curve in curves.items() if curve is not None]


def _waited(metrics: dict[str, Any]) -> float | None:
    """The share of time that the networks' trainers waited for photos, mean over epochs."""
    shares = [_finite(_at(row, "waited")) for log in _logs(metrics).values() for row in log]
    known = [share for share in shares if share is not None]
    return sum(known) / len(known) if known else None


def _logs(metrics: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    return {name: _at(network, "log") or [] for name, network in (_at(metrics, "networks") or {}).items()}


def _curve(series: dict[str, list[Any]]) -> dict[str, Any] | None:
    """Lines of losses, one series after the other along the epochs; the vertical axis goes from 0 to the largest loss.

    Returns None if no loss is finite. A loss that is not finite gets no point; the line connects its neighbours.
    """
    epochs = sum(len(losses) for losses in series.values())
    top = _best([loss for losses in series.values() for loss in losses])
    if top is None:
        return None
    width, height = CHART
    lines, start = [], 0
    for name, losses in series.items():
        points = [
            (width * (start + i) / max(epochs - 1, 1), height * (1 - loss / top) if top else height)
            for i, loss in enumerate(losses)
            if _finite(loss) is not None
        ]
        if points:
            finite = [loss for loss in losses if _finite(loss) is not None]
            lines.append({"name": name, "points": points, "first": finite[0], "last": finite[-1]})
        start += len(losses)
    return {"lines": lines, "top": top, "epochs": epochs, "width": width, "height": height}


def _stages(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """Every stage's time and throughput, with its share of the total time and of the longest stage's time."""
    stages = _at(metrics, "stages") or {}
    seconds = {name: _finite(_at(stage, "seconds")) for name, stage in stages.items()}
    return [
        {
            "name": name,
            "rows": _at(stage, "rows"),
            "failed": _at(stage, "failed"),
            "seconds": seconds[name],
            "share": _share(seconds[name], _seconds(metrics)),
            "bar": _share(seconds[name], _best(list(seconds.values()))),
            "rows_per_second": _at(stage, "rows_per_second"),
        }
        for name, stage in stages.items()
    ]
