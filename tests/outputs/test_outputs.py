"""Forms of labels: read back by the libraries that people read them with."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from wsseg_ray.outputs import OUTPUTS, Labelled, Output


def labelled() -> Labelled:
    """Two pieces of class 2, which touch at a corner of one, and one of class 1."""
    labels = np.zeros((8, 8), np.uint8)
    labels[0:2, 0:3], labels[2, 3], labels[4:6, 6:8], labels[5, 0:2] = 2, 2, 2, 1
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), 200, np.uint8)).save(file, "png")
    return Labelled("a.png", file.getvalue(), labels, ["cat", "dog"])


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
    empty = Labelled("b.jpg", b"", np.zeros((2, 3), np.uint8), ["cat"])
    found = json.loads(output.join([output.encode(empty)], ["cat"]))
    assert found["images"] == [{"id": 1, "file_name": "b.jpg", "height": 2, "width": 3}] and found["annotations"] == []


@pytest.mark.parametrize("name", OUTPUTS.names)
def test_a_form_is_a_file_per_photo_or_one_file(name):
    output = OUTPUTS.get(name)
    assert isinstance(output, Output) and bool(output.suffix) != bool(output.file)
    assert (output.join is None) == (not output.file)
