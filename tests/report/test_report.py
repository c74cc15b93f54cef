import base64
import io
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from wsseg_ray.report import Strip, render
from wsseg_ray.segmentation.networks import NETWORKS

CLASSES = ["cat", "dog", "person"]
NAMES = ["background", *CLASSES]
HOSTILE = '<script>alert("1")</script>"><img src=x onerror=alert(2)>\u202e'


class Page(HTMLParser):
    """The tags and the visible text of a page or of a part of it."""

    def __init__(self, html: str):
        super().__init__()
        self.html, self.tags, self.text = html, [], ""
        self.feed(re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL))

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def section(self, name: str) -> "Page":
        return Page(re.search(f'<(section|div) id="{name}">.*?</section>', self.html, re.DOTALL).group())

    @property
    def rows(self) -> dict[str, list[str]]:
        """The cells of each table row, by the row's first cell."""
        rows = [re.findall(r"<t[dh]\b.*?</t[dh]>", row, re.DOTALL) for row in re.split(r"<tr\b", self.html)[1:]]
        return {name: cells for name, *cells in ([" ".join(Page(c).text.split()) for c in row] for row in rows)}


def network(name: str, **numbers) -> dict:
    """What `metrics.json` has of a network, besides its numbers."""
    refined = name.removesuffix("_unrefined")
    return {"kind": NETWORKS.get(refined).kind, "unrefined_of": refined if refined != name else "", **numbers}


def networks_with(**miou: float) -> dict:
    return {"networks": {name: network(name, val={"miou": value}) for name, value in miou.items()}}


def scores(rng) -> dict:
    iou = {name: float(rng.uniform(10, 99)) for name in NAMES}
    crf = {name: float(rng.uniform(10, 99)) for name in NAMES}
    val = {"miou": float(np.mean(list(iou.values()))), "miou_crf": float(np.mean(list(crf.values())))}
    return {
        "val": val | {"iou": iou, "iou_crf": crf},
        "log": [{"epoch": epoch, "loss": float(2 / (epoch + 1))} for epoch in range(4)],
    }


def fake_metrics() -> dict:
    rng = np.random.default_rng(0)
    stages = ("images", "proposals", "train_hcp", "score", "refine", "supervise", "train_segmenter", "predict")
    kinds = ("localization", "localization_best", "rough_mask")
    networks = ("AN_A", "SN_A", "AN_B", "SN_B", "FULL", "AN_A_unrefined", "SN_B_unrefined")
    return {
        "classes": CLASSES,
        "data": {"train": 3320, "val": 80, "single_label": 2200, "train_with_masks": 3310},
        "stages": {
            name: {
                "rows": int(rng.integers(1000, 9999)),
                "failed": int(rng.integers(1, 9)),
                "seconds": float(rng.uniform(1, 59)),
                "rows_per_second": float(rng.uniform(1, 99)),
            }
            for name in stages
        },
        "hcp": {
            "log": [{"step": "image", "epoch": e, "loss": 0.8 / (e + 1)} for e in range(3)]
            + [{"step": "hypothesis", "epoch": e, "loss": 0.3 / (e + 1)} for e in range(2)],
            "val_map": 91.2,
            "ap": {name: float(rng.uniform(50, 99)) for name in CLASSES},
            "pca": {"dims": 87, "energy": 0.983},
        },
        "candidates": {
            name: {"photos": 80 + i, "candidates": 2310 + i, "fallback": 3 + i} for i, name in enumerate(CLASSES)
        },
        "supervision": {
            "photos": 317,
            "localization_miou": 21.0,
            "localization_best_miou": 51.5,
            "localization_best_threshold": 0.35,
            "rough_mask_miou": 40.2,
            "iou": {kind: {name: float(rng.uniform(1, 99)) for name in NAMES} for kind in kinds},
            "ablation": {
                keep: {f"{kind}_miou": float(rng.uniform(1, 99)) for kind in kinds}
                | {"localization_best_threshold": float(rng.uniform(0.1, 0.9))}
                for keep in ("none", "nearest", "farthest", "norm", "score", "random")
            },
            "keep": "farthest",
            "readings": {
                reading: {f"{kind}_miou": float(rng.uniform(1, 99)) for kind in kinds}
                for reading in ("votes", "mean_score")
            },
            "reading": "votes",
            "rough_mask_unknown": 12.5,
        },
        "networks": {name: network(name, **scores(rng)) for name in networks},
    }


def fake_strips(side: int = 24, count: int = 2) -> list[Strip]:
    rng = np.random.default_rng(1)
    texture = Image.fromarray(rng.integers(0, 256, (side // 6, side // 6, 3), np.uint8))
    photo = np.asarray(texture.resize((side + 8, side)))
    mask = np.zeros(photo.shape[:2], np.uint8)
    mask[4:12, 4:12], mask[14:, :6], mask[0] = 1, 3, 255
    heat = rng.uniform(size=mask.shape)
    networks = [*((name, mask) for name in ("AN_A", "SN_A", "AN_B", "SN_B", "SN_B + CRF", "FULL"))]
    train = Strip("2007_train", "train", photo, ["cat", "person"], [("cat", heat), ("person", heat)], mask, [], mask)
    val = Strip("2007_val", "val", photo, ["cat"], predictions=networks, truth=mask)
    return [train] * count + [val] * count


def test_the_gallery_has_the_worst_photo_first():
    val = next(strip for strip in fake_strips() if strip.split == "val")
    shown = [
        replace(val, image_id=name, score=score, predictions=val.predictions[4:5])
        for name, score in (("better", 81.26), ("worse", 7.04))
    ]
    text = page(strips=shown)
    assert "Where SN_B + CRF is most wrong, and most right" in text
    assert 0 < text.index("<b>7.0</b> <code>worse</code>") < text.index("<b>81.3</b> <code>better</code>")
    assert "photos they never saw" not in text and 'id="gallery"' not in page()


def test_the_gallery_shows_the_photos_of_one_class_alone():
    """A choice per class, and a rule of style that hides the photos without it: no script is needed."""
    val = next(strip for strip in fake_strips() if strip.split == "val")
    both = [
        replace(val, image_id=name, score=50.0, labels=[name], predictions=val.predictions[:1]) for name in CLASSES[:2]
    ]
    text = page(strips=both)
    for i, name in enumerate(CLASSES):
        assert f'id="only-{i}"' in text and f"#only-{i}:checked) .gallery article:not(.has-{i})" in text, name
    assert text.count('<article class="has-0 "') == text.count('<article class="has-1 "') == 1
    assert 'name="only"' not in page(strips=both[:1]), "one photo needs no choice"


def page(**changes) -> str:
    arguments = {
        "title": "A fake run",
        "metrics": fake_metrics(),
        "classes": CLASSES,
        "strips": fake_strips(),
        "failures": [{"image_id": "broken", "stage": "images", "error": "not an image"}],
        "recipe_yaml": "seed: 0\ndataset:\n  layout: demo\n",
        "command": "wsseg run demo",
    }
    return render(**arguments | changes)


def leaves(tree):
    if isinstance(tree, dict):
        for value in tree.values():
            yield from leaves(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from leaves(value)
    else:
        yield tree


def test_every_number_is_on_the_page():
    metrics = fake_metrics()
    shown = Page(page(metrics=metrics)).text
    for about in metrics["networks"].values():
        for key in ("log", "kind", "unrefined_of"):
            about.pop(key)
    for unrefined in ("AN_A_unrefined", "SN_B_unrefined"):
        for key in ("iou", "iou_crf"):  # Table 3 compares means
            metrics["networks"][unrefined]["val"].pop(key)
    metrics["hcp"].pop("log")
    for value in leaves({"shares": metrics["hcp"]["pca"].pop("energy") * 100} | metrics):
        texts = [value] if isinstance(value, str) else [f"{value:,.0f}"] if isinstance(value, int) else []
        texts = texts or [f"{value:.1f}", f"{value:.2f}"]
        assert any(text in shown for text in texts), value


def test_headline_is_the_better_of_sn_b_with_its_share_of_the_ceiling():
    metrics = {
        "data": {"train": 320, "val": 80},
        "stages": {"images": {"seconds": 100.0}, "score": {"seconds": 3600}, "refine": {"seconds": None}},
        "networks": {
            "AN_A": network("AN_A", val={"miou": 77.0}),
            "SN_B": network("SN_B", val={"miou": 40.0, "miou_crf": 42.0}),
            "FULL": network("FULL", val={"miou": 50.0, "miou_crf": 60.0}),
        },
    }
    head = Page(page(metrics=metrics).partition("<section")[0]).text
    for text in ("42.0", "SN_B with CRF", "70 %", "60.0", "400", "320 to learn from", "1 h 1 min"):
        assert text in head
    del metrics["networks"]["SN_B"]
    head = Page(page(metrics=metrics).partition("<section")[0]).text
    assert "77.0" in head and "mIoU of AN_A on" in head


def test_networks_table_marks_the_best_weak_network():
    networks = {
        name: network(name, val={"miou": miou, "iou": {"background": 90.0, "cat": miou}})
        for name, miou in {"AN_A": 30.0, "SN_B": 41.0, "FULL": 60.0, "SN_B_unrefined": 80.0}.items()
    }
    html = page(metrics={"networks": networks}, classes=["cat"])
    assert "<b>41.0</b>" in html and "<b>60.0</b>" not in html and "<b>80.0</b>" not in html
    assert html.count("<b>90.0</b>") == 2  # a tie marks both
    rows = Page(html).section("networks").rows
    assert rows["mIoU"] == ["30.0", "41.0", "60.0", "61.8", "64.7", "62.9", "64.3"]
    assert rows["cat"] == ["30.0", "41.0", "60.0", "54.1", "54.8", "44.7", "48.0"]


def test_the_paper_stands_beside_voc_classes_alone():
    text = Page(page()).section("networks").text
    assert "54.6" in text and "not the paper's mIoU over all 21 VOC classes" in text
    assert "the paper" not in Page(page(classes=["cat", "square"])).section("networks").text.lower()


def test_refinement_table_shows_the_change():
    shown = Page(page(metrics=networks_with(AN_A=39.7, AN_A_unrefined=41.2))).section("networks")
    assert shown.rows["AN_A"][:3] == ["41.2", "39.7", "−1.5"]


@pytest.mark.parametrize(("best", "warned"), [(51.0, True), (22.0, False), (math.nan, False), (None, False)])
def test_only_a_large_gap_is_called_loose(best, warned):
    metrics = {"supervision": {"localization_miou": 21.0, "localization_best_miou": best}}
    assert ("candidates are too loose" in page(metrics=metrics)) is warned


def test_the_ablation_marks_what_is_in_use():
    rows = Page(page()).section("supervision").rows
    assert list(rows)[-6:] == ["none", "nearest", "farthest in use", "norm", "score", "random"]
    assert {"votes in use", "mean score"} <= set(rows)
    assert "Rough masks leave 12.5 % of the pixels open" in page()
    assert "How the scores are read" not in page(metrics={"supervision": {"ablation": {}}})


def test_nothing_is_loaded_and_every_picture_decodes():
    html = page()
    tags = Page(html).tags
    pictures = [attributes["src"] for tag, attributes in tags if tag == "img"]
    pictures += re.findall(r"url\(([^)]*)\)", html)
    assert len(pictures) == 2 * (5 + 8) + 4
    for uri in pictures:
        Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2], validate=True))).load()
    assert not {"script", "link", "iframe", "object", "embed", "base"} & {tag for tag, _ in tags}
    for _, attributes in tags:
        for name in ("src", "href", "srcset", "action", "poster", "xlink:href"):
            assert attributes.get(name, "#").startswith(("data:image/", "#"))
        assert not any(name.startswith("on") for name in attributes)
    assert "http:" not in html and "https:" not in html and "@import" not in html


def test_links_lead_somewhere():
    for html in (page(), page(metrics={}, strips=[], failures=[])):
        tags = Page(html).tags
        ids = {attributes["id"] for _, attributes in tags if "id" in attributes}
        assert {attributes["href"][1:] for tag, attributes in tags if tag == "a"} <= ids


def test_hostile_names_are_text():
    classes = [HOSTILE, "</style><b>", "plain"]
    metrics = fake_metrics()
    metrics["candidates"] = {name: {"photos": 1} for name in classes}
    metrics["networks"][HOSTILE] = {"log": [{"loss": 1.0}]}
    metrics["stages"][HOSTILE] = {"rows": 1}
    strip = Strip(HOSTILE, "train", np.zeros((8, 8, 3), np.uint8), [HOSTILE], [(HOSTILE, np.zeros((8, 8)))])
    html = page(
        title=HOSTILE,
        metrics=metrics,
        classes=classes,
        strips=[strip],
        failures=[{"image_id": HOSTILE, "stage": HOSTILE, "error": HOSTILE}],
        recipe_yaml=HOSTILE,
        command=HOSTILE,
    )
    parsed = Page(html)
    assert "script" not in {tag for tag, _ in parsed.tags}
    assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)
    assert all(attributes["src"].startswith("data:") for tag, attributes in parsed.tags if tag == "img")
    assert parsed.text.count("<script>") > 10


@settings(max_examples=20)
@given(st.text(max_size=30))
def test_any_text_renders_and_encodes(text):
    html = page(title=text, strips=[], failures=[{"image_id": text, "stage": "images", "error": text}])
    assert html.encode().count(b"<script") == 0
    assert "image_id" in Page(html).text


def test_lone_surrogates_of_file_names_encode():
    page(failures=[{"image_id": "caf\udce9", "stage": "images", "error": "?"}]).encode()


def test_failures_are_cut_at_fifty_and_long_errors_end():
    failures = [{"image_id": f"photo_{i:02d}", "stage": "images", "error": "x" * 10_000} for i in range(63)]
    text = Page(page(failures=failures)).section("failures").text
    assert "photo_49" in text and "photo_50" not in text and "13 more" in text
    assert "x" * 501 not in text and "…" in text
    assert "No row failed" in Page(page(failures=[])).section("failures").text


@pytest.mark.parametrize("empty", [{}, None])
def test_an_empty_run_renders(empty):
    keys = ("data", "stages", "hcp", "candidates", "supervision", "networks")
    for metrics in ({}, dict.fromkeys(keys, empty)):
        html = render("t", metrics, [], [], [], "")
        assert "–" in Page(html).text and "nan" not in Page(html).text.lower() and "None" not in Page(html).text


def paths(tree, prefix=()):
    for key, value in tree.items():
        yield (*prefix, key)
        if isinstance(value, dict):
            yield from paths(value, (*prefix, key))


@pytest.mark.parametrize("gone", [True, False])
def test_any_one_key_may_be_missing_or_null(gone):
    for path in paths(fake_metrics()):
        metrics = fake_metrics()
        parent = metrics
        for key in path[:-1]:
            parent = parent[key]
        if gone:
            del parent[path[-1]]
        else:
            parent[path[-1]] = None
        body = page(metrics=metrics, strips=[], failures=[]).partition("</style>")[2]
        assert not re.search(r"\b(nan|inf|None)\b", body), path


def test_not_a_number_is_a_dash_everywhere():
    def undefined(tree):
        if isinstance(tree, dict):
            return {key: undefined(value) for key, value in tree.items()}
        return math.nan if isinstance(tree, (int, float)) else tree

    parsed = Page(page(metrics=undefined(fake_metrics())))
    assert "nan" not in parsed.text
    assert parsed.section("networks").rows["mIoU"][:10] == ["–"] * 10
    assert parsed.section("time").rows["score"] == ["–", "–", "", "–", "–", "–"]


def test_losses_that_are_not_finite_leave_the_curve_standing():
    log = [{"epoch": 0, "loss": 2.0}, {"epoch": 1, "loss": math.nan}, {"epoch": 2, "loss": 1.0}]
    networks = {"SN_B": {"log": log}, "AN_A": {"log": [{"loss": math.inf}]}, "AN_B": {"log": [{"loss": 0.0}]}}
    html = page(metrics={"networks": networks}, strips=[])
    polylines = [attributes["points"].split() for tag, attributes in Page(html).tags if tag == "polyline"]
    assert polylines == [["0.0,0.0", "206.0,42.0"], ["0.0,84.0"]]


@pytest.mark.parametrize(("keep", "told"), [("nearest", True), ("none", False)])
def test_what_is_kept_is_told(keep, told):
    assert ("only a part is kept" in page(metrics={"supervision": {"keep": keep}}, strips=[])) is told


@pytest.mark.parametrize(("reading", "told"), [("votes", "kept regions vote"), ("mean_score", "map named “votes”")])
def test_how_a_map_came_about_is_told(reading, told):
    assert told in page(metrics={"supervision": {"reading": reading}})


def test_rivals_are_explained_where_there_are_any():
    with_rivals = page(metrics=networks_with(SN_B=10, CCNN=10, MIL_FCN=10), strips=[])
    assert "CCNN, MIL_FCN learned from the names alone" in with_rivals
    assert "class activation maps" not in with_rivals and "other ways to learn" in with_rivals
    alone = page(metrics=networks_with(SN_B=10), strips=[])
    assert "learned from the names alone" not in alone and "other ways to learn" not in alone
    assert "class activation maps" in page(metrics=networks_with(SN_B=10, CAM=10), strips=[])


def test_table_4_stands_beside_the_papers():
    networks = {name: network(name, val={"miou": 10.0, "miou_crf": 20.0}) for name in ("CCNN", "SN_B")}
    rows = Page(page(metrics={"networks": networks}, classes=["cat", "dog"], strips=[])).section("networks").rows
    assert rows["CCNN"] == ["10.0", "20.0", f"{(65.9 + 47.0 + 43.2) / 3:.1f}", "34.5"]
    assert rows["SN_B"] == ["10.0", "20.0", f"{(80.7 + 48.0 + 54.6) / 3:.1f}", "41.9"]


def test_networks_of_the_users_own_have_a_column_and_count_as_weak():
    own = {"SN_B": network("SN_B", val={"miou": 10.0}), "MINE": {"kind": "paper", "val": {"miou": 11.0}}}
    html = page(metrics={"networks": own}, classes=["cat"], strips=[])
    assert Page(html).section("networks").rows["mIoU"][:2] == ["10.0", "11.0"] and "<b>11.0</b>" in html


def test_the_time_that_trainers_waited_is_told():
    log = [{"loss": 1.0, "waited": 0.01}, {"loss": 0.5, "waited": 0.03}]
    assert "waited <b>2.0 %</b>" in page(metrics={"networks": {"SN_B": {"log": log}}}, strips=[])


def test_rounds_are_lines_of_one_curve():
    log = [{"loss": 1.0, "round": round_} for round_ in (0, 0, 1, 1)]
    html = page(metrics={"networks": {"SN_B": {"log": log}}}, strips=[])
    assert len([tag for tag, _ in Page(html).tags if tag == "polyline"]) == 2


@pytest.mark.parametrize(("rounds", "words"), [(1, "once"), (2, "twice"), (3, "3 times")])
def test_region_rounds_are_told_and_are_one_line_of_the_curve(rounds, words):
    steps = ["image", "image", "hypothesis", *(f"region-{n}" for n in range(rounds) for _ in range(2))]
    html = page(metrics={"hcp": {"log": [{"step": step, "loss": 1.0} for step in steps]}}, strips=[])
    assert f"then {words} from regions" in html
    lines = [attributes for tag, attributes in Page(html).tags if tag == "polyline"]
    assert [line["class"] for line in lines] == ["line1", "line2", "line3"]
    assert len(lines[2]["points"].split()) == 2 * rounds
    assert all(f".{line['class']} {{ stroke" in html for line in lines)


def test_bars_and_shares_of_the_stages():
    stages = {"score": {"seconds": 30.0}, "refine": {"seconds": 10.0}, "predict": {"seconds": 0.01}, "images": {}}
    html = page(metrics={"stages": stages})
    assert re.findall(r"width:([\d.]+)%\"", html) == ["100.00", "33.33", "0.03"]
    rows = Page(html).section("time").rows
    assert rows["score"][:2] == ["30.0 s", "75 %"]
    assert rows["predict"][:2] == ["0.0 s", "< 1 %"]
    assert rows["images"] == ["–", "–", "", "–", "–", "–"]
    assert rows["all"][0] == "40.0 s"


def test_strips_need_no_part_but_the_photo():
    strips = [Strip("bare", split, np.zeros((9, 5, 3), np.uint8)) for split in ("train", "val")]
    assert Page(page(strips=strips)).section("pictures").text.count("bare") == 2


def test_the_page_is_light():
    assert len(page(strips=fake_strips(side=300, count=6))) < 1_500_000
