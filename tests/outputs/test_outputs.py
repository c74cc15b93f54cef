"""Forms of labels: read back by the libraries that people read them with."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from wsseg_ray.outputs import OUTPUTS, Labelled, Output


def probabilities() -> np.ndarray:
    return np.stack([np.full((2, 2), share, np.float32) for share in (0.5, 0.25, 0.25)])


def labelled() -> Labelled:
    """Two pieces of class 2, which touch at a corner of one, and one of class 1."""
    labels = np.zeros((8, 8), np.uint8)
    labels[0:2, 0:3], labels[2, 3], labels[4:6, 6:8], labels[5, 0:2] = 2, 2, 2, 1
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), 200, np.uint8)).save(file, "png")
    return Labelled("a.png", file.getvalue(), labels, ["cat", "dog"], probabilities)


def test_a_palette_png():
    with Image.open(io.BytesIO(OUTPUTS.get("png").encode(labelled()))) as found:
        assert found.mode == "P" and (np.asarray(found) == labelled().labels).all()


def test_a_picture_has_the_background_darker_and_each_class_in_its_colour():
    with Image.open(io.BytesIO(OUTPUTS.get("overlay").encode(labelled()))) as found:
        picture = np.asarray(found).astype(int)
    assert found.format == "JPEG" and picture.shape == (8, 8, 3)
    assert abs(picture[6:, 3:] - 110).max() < 20, "200 under 45 % of black; JPEG blurs an edge"
    assert picture[0, 0, 1] > picture[0, 0, 2] + 40, "VOC's second colour is green"


def test_coco_reads_every_piece_with_its_area_box_and_mask(tmp_path):
    output = OUTPUTS.get("coco")
    part = output.encode(labelled())
    (tmp_path / output.file).write_bytes(output.join([part, part], ["cat", "dog"]))
    data = COCO(tmp_path / output.file)
    assert data.getCatIds(["dog"]) == [2] and [image["file_name"] for image in data.loadImgs([1, 2])] == ["a.png"] * 2
    objects = data.loadAnns(data.getAnnIds(imgIds=[2]))
    assert [(one["category_id"], one["area"], one["bbox"]) for one in objects] == [
        (1, 2, [0, 5, 2, 1]),
        (2, 7, [0, 0, 4, 3]),
        (2, 4, [6, 4, 2, 2]),
    ]
    drawn = sum(one["category_id"] * data.annToMask(one) for one in objects)
    assert (drawn == labelled().labels).all()


def test_a_photo_without_objects_is_in_the_file_too():
    output = OUTPUTS.get("coco")
    empty = Labelled("b.jpg", b"", np.zeros((2, 3), np.uint8), ["cat"], probabilities)
    found = json.loads(output.join([output.encode(empty)], ["cat"]))
    assert found["images"] == [{"id": 1, "file_name": "b.jpg", "height": 2, "width": 3}] and found["annotations"] == []


def ring_with_a_corner() -> Labelled:
    """A disc with a hole, class 1, and a square at the photo's edge, class 2."""
    y, x = np.mgrid[:60, :80]
    radius = np.hypot(y - 30, x - 30)
    labels = ((radius < 20) & (radius > 8)).astype(np.uint8)
    labels[40:, 60:] = 2
    return Labelled("a.png", b"", labels, ["cat", "dog"], probabilities)


def test_polygons_are_the_outer_outlines(tmp_path):
    output, photo = OUTPUTS.get("coco_polygons"), ring_with_a_corner()
    (tmp_path / output.file).write_bytes(output.join([output.encode(photo)], ["cat", "dog"]))
    data = COCO(tmp_path / output.file)
    disc, square = data.loadAnns(data.getAnnIds())
    filled = np.hypot(*np.mgrid[-30:30, -30:50]) < 20
    drawn = data.annToMask(disc) > 0
    assert (drawn & filled).sum() / (drawn | filled).sum() > 0.97, "the hole is lost"
    assert len(square["segmentation"]) == 1
    points = np.array(square["segmentation"][0]).reshape(-1, 2)
    assert points.min(axis=0).tolist() == [60, 40] and points.max(axis=0).tolist() == [80, 60]
    assert abs((data.annToMask(square) > 0).sum() - 400) <= 20


@pytest.mark.parametrize("name", ["coco", "coco_polygons"])
def test_an_annotation_tool_reads_the_file(tmp_path, name):
    """Datumaro, with which CVAT imports. It wants other versions of our libraries, so the tests do not need it."""
    datumaro = pytest.importorskip("datumaro")
    output = OUTPUTS.get(name)
    for folder in ("annotations", "images"):
        (tmp_path / folder).mkdir()
    made = output.join([output.encode(ring_with_a_corner())], ["cat", "dog"])
    (tmp_path / "annotations" / "instances_default.json").write_bytes(made)
    (item,) = datumaro.Dataset.import_from(str(tmp_path), "coco_instances")
    shapes = [one for one in item.annotations if one.type.name in ("mask", "polygon")]
    assert item.id == "a" and sorted(one.label for one in shapes) == [0, 1]
    assert all(300 < one.get_area() < 1300 for one in shapes)


def test_probabilities_are_numpys():
    with np.load(io.BytesIO(OUTPUTS.get("npz").encode(labelled()))) as found:
        assert found["classes"].tolist() == ["background", "cat", "dog"]
        assert found["probabilities"].dtype == np.float16 and (found["probabilities"] == probabilities()).all()


@pytest.mark.parametrize("name", OUTPUTS.names)
def test_a_form_is_a_file_per_photo_or_one_file(name):
    output = OUTPUTS.get(name)
    assert isinstance(output, Output) and bool(output.suffix) != bool(output.file)
    assert (output.join is None) == (not output.file)
