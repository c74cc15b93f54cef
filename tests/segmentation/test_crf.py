import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wsseg_ray.segmentation.crf import FLOOR, dense_crf, mean_field
from wsseg_ray.segmentation.permutohedral import Lattice, build


def halves(height: int = 24, width: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """A photo of two colours, side by side, and its labels."""
    labels = np.zeros((height, width), np.uint8)
    labels[:, width // 2 :] = 1
    return np.array([[200, 30, 30], [30, 30, 200]], np.uint8)[labels], labels


def noisy(labels: np.ndarray, classes: int = 2) -> np.ndarray:
    """Probabilities that name the wrong class on every sixth pixel."""
    wrong = np.random.default_rng(0).random(labels.shape) < 1 / 6
    said = np.where(wrong, 1 - labels, labels)
    probabilities = np.full((classes, *labels.shape), 0.3 / max(classes - 1, 1), np.float32)
    np.put_along_axis(probabilities, said[None], 0.7, axis=0)
    return probabilities


@pytest.mark.parametrize("classes", [2, 5])
def test_cleans_a_noisy_map_up_to_the_edge(classes):
    photo, labels = halves()
    probabilities = noisy(labels, classes)
    assert (probabilities.argmax(axis=0) != labels).any()
    found = dense_crf(photo, probabilities)
    assert found.dtype == np.uint8
    assert (found == labels).all()


def test_without_kernels_it_is_the_arg_max():
    photo, labels = halves()
    probabilities = noisy(labels)
    found = dense_crf(photo, probabilities, bilateral_weight=0, spatial_weight=0)
    assert (found == probabilities.argmax(axis=0)).all()


def test_views_and_read_only_arrays_give_the_same_and_stay_as_they_are():
    photo, labels = halves()
    probabilities = noisy(labels)
    expected = dense_crf(photo, probabilities)
    last = np.ascontiguousarray(probabilities.transpose(1, 2, 0))  # channels last in memory
    padded = np.zeros((30, 40, 3), np.uint8)
    padded[:24, :32] = photo
    view = padded[:24, :32]
    before = last.copy()
    last.flags.writeable = view.flags.writeable = False
    assert (dense_crf(view, last.transpose(2, 0, 1)) == expected).all()
    assert (last == before).all()


def test_certain_probabilities_stay_finite():
    photo, labels = halves()
    certain = np.stack([1 - labels, labels]).astype(np.float32)
    assert (dense_crf(photo, certain) == labels).all()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (9, 1), (2, 2)])
@pytest.mark.parametrize("classes", [1, 2])
def test_tiny_photos_and_one_class(height, width, classes):
    photo = np.zeros((height, width, 3), np.uint8)
    probabilities = np.zeros((classes, height, width), np.float32)
    probabilities[-1] = 1
    found = dense_crf(photo, probabilities)
    assert found.shape == (height, width) and (found == classes - 1).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_refuses_what_is_not_finite(value):
    photo, labels = halves()
    probabilities = noisy(labels)
    probabilities[0, 3, 3] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        dense_crf(photo, probabilities)


@pytest.mark.parametrize(
    ("photo", "probabilities"),
    [
        (np.zeros((4, 5, 3), np.uint8), np.ones((2, 5, 4))),
        (np.zeros((4, 5, 3), np.uint8), np.ones((4, 5))),
        (np.zeros((4, 5, 3), np.uint8), np.ones((0, 4, 5))),
        (np.zeros((4, 5), np.uint8), np.ones((2, 4, 5))),
        (np.zeros((4, 5, 4), np.uint8), np.ones((2, 4, 5))),
        (np.zeros((4, 5, 3), np.float32), np.ones((2, 4, 5))),
        (np.zeros((0, 5, 3), np.uint8), np.ones((2, 0, 5))),
    ],
)
def test_refuses_what_does_not_fit(photo, probabilities):
    with pytest.raises(ValueError, match="must be"):
        dense_crf(photo, probabilities)


def drawn() -> tuple[np.ndarray, np.ndarray]:
    """A photo of four textured regions, and probabilities of which two in five pixels name the wrong class."""
    y, x = np.mgrid[:24, :32]
    labels = np.where((x - 10) ** 2 + (y - 12) ** 2 < 64, 1, np.where(x + y > 36, 2, np.where(y < 6, 3, 0)))
    colours = np.array([[90, 120, 90], [120, 100, 80], [90, 110, 120], [110, 110, 110]])
    texture = (37 * x + 91 * y + 13 * x * y) % 83
    photo = (colours[labels] + texture[..., None] * [1, -1, 1]).astype(np.uint8)
    wrong = (53 * x + 29 * y + 7 * x * x + 3 * y * y) % 5 < 2
    said = np.where(wrong, (labels + 1 + (x + 2 * y) % 3) % 4, labels)
    probabilities = np.full((4, 24, 32), 0.2, np.float32)
    np.put_along_axis(probabilities, said[None], 0.4, axis=0)
    return photo, probabilities


# What pydensecrf2 1.1 makes of it with the widths 12 and 10; its marginals of the best two labels differ by 0.007 or
# more. A third of the labels are not those of the largest probability, and one in sixteen is not the region's.
GOLDEN = (
    "fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffd555fffffffff"
    "ff155555cff3cff2cc5555557fcccffa035555557cf3cfea0155555550f303aaf1555555500002aa01555555500f0aaa"
    "015555555030eaaa015555555c00aaaa015555555002aaaa01555555500aaaaa00555555402aaaaa0055555540aaaaaa"
    "0015555502aaaaaa000155500aaaaaaa000000002aaaaaaa00000000aaaaaaaa00000002aaaaaaaa0000000aaaaaaaaa"
)


def test_labels_of_pydensecrf_kept_here():
    packed = np.frombuffer(bytes.fromhex(GOLDEN), np.uint8)
    expected = np.unpackbits(packed).reshape(24, 32, 2) @ [2, 1]
    assert (dense_crf(*drawn(), bilateral_xy=12, bilateral_rgb=10) == expected).all()


def pydensecrf(photo: np.ndarray, probabilities: np.ndarray, iterations: int = 10, **settings: float) -> np.ndarray:
    """(C, H, W) marginals."""
    found = pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf2 is not installed")
    crf = found.DenseCRF2D(photo.shape[1], photo.shape[0], len(probabilities))
    crf.setUnaryEnergy(-np.log(np.maximum(probabilities, FLOOR)).reshape(len(probabilities), -1))
    crf.addPairwiseGaussian(sxy=settings.get("spatial_xy", 3), compat=settings.get("spatial_weight", 3))
    crf.addPairwiseBilateral(
        sxy=settings.get("bilateral_xy", 121),
        srgb=settings.get("bilateral_rgb", 5),
        rgbim=photo,
        compat=settings.get("bilateral_weight", 4),
    )
    return np.array(crf.inference(iterations)).reshape(probabilities.shape)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"iterations": 1},
        {"bilateral_xy": 12, "bilateral_rgb": 10},
        {"bilateral_xy": 3, "bilateral_rgb": 2.5, "spatial_xy": 7.3},
        {"bilateral_weight": 10, "spatial_weight": 1},
    ],
)
def test_agrees_with_pydensecrf(settings):
    photo, probabilities = drawn()
    marginals = pydensecrf(photo, probabilities, **settings)
    first, second = -np.sort(-marginals, axis=0)[:2]
    found = dense_crf(photo, probabilities, **settings)
    assert (first - second > 1e-3).mean() > 0.99
    assert (found == marginals.argmax(axis=0))[first - second > 1e-3].all()


@pytest.mark.slow
@pytest.mark.parametrize("classes", [7, 21])
def test_agrees_with_pydensecrf_on_real_photos(classes):
    voc = Path(__file__).parents[3] / "shared" / "data" / "voc-animals" / "VOCdevkit" / "VOC2012"
    if not voc.exists():
        pytest.skip("no photos in ../shared/data/voc-animals")
    names = (voc / "ImageSets" / "Segmentation" / "val.txt").read_text().split()[:2]
    for n, name in enumerate(names):
        photo = np.array(Image.open(voc / "JPEGImages" / f"{name}.jpg").convert("RGB"))
        coarse = torch.rand((1, classes, 6, 8), generator=torch.Generator().manual_seed(n)) * 6
        smooth = torch.nn.functional.interpolate(coarse, size=photo.shape[:2], mode="bilinear")
        probabilities = smooth[0].softmax(dim=0).numpy()
        expected = pydensecrf(photo, probabilities).argmax(axis=0)
        assert (dense_crf(photo, probabilities) == expected).mean() > 0.995


def test_networks_share_a_photo_and_photos_a_call():
    photo, probabilities = drawn()
    other = probabilities[::-1]
    alone = [dense_crf(photo, one) for one in (probabilities, other)]
    assert (alone[0] != alone[1]).any()
    assert (dense_crf(photo, np.stack([probabilities, other])) == alone).all()
    dark = photo // 2
    both = dense_crf(np.stack([photo, dark]), np.stack([probabilities, other]))
    assert both.shape == (2, 24, 32) and (both == [alone[0], dense_crf(dark, other)]).all()
    two = np.stack([probabilities, other])
    all_four = dense_crf(np.stack([photo, dark]), np.stack([two, two]))
    assert (all_four == [alone, [dense_crf(dark, probabilities), dense_crf(dark, other)]]).all()


def test_tensors_stay_as_they_are_and_give_the_same():
    photo, probabilities = drawn()
    tensor = torch.from_numpy(probabilities).clone().requires_grad_()
    found = dense_crf(photo, tensor)
    assert isinstance(found, np.ndarray) and (found == dense_crf(photo, probabilities)).all()
    assert (tensor.detach().numpy() == probabilities).all()
    assert (dense_crf(photo[:, ::-1], probabilities[..., ::-1].astype(np.float64)).shape) == (24, 32)


def pairs(weight: float) -> Lattice:
    """Four points, of which the first two and the last two share a corner; K is `weight` times a block of ones."""
    return Lattice(
        points=torch.tensor([0, 1, 2, 3], dtype=torch.int32),
        shares=torch.ones(4),
        starts=torch.tensor([0, 2, 4], dtype=torch.int32),
        neighbours=[],
        corners=torch.tensor([[0], [0], [1], [1]], dtype=torch.int32),
        weights=torch.full((4, 1), weight),
    )


def test_messages_of_a_lattice_made_by_hand():
    start = torch.tensor([[0.75, 0.25], [0.25, 0.75], [0.75, 0.25], [0.75, 0.25]])
    found = mean_field(start.log()[:, None], [pairs(1.0)], 1)[:, 0]
    e = math.e  # the last two get a message of 1.5 for the first class and 0.5 for the second
    expected = [[0.75, 0.25], [0.25, 0.75], *[[3 * e / (3 * e + 1), 1 / (3 * e + 1)]] * 2]
    assert found.numpy() == pytest.approx(np.array(expected), abs=1e-6)
    assert torch.equal(mean_field(start.log()[:, None], [], 5), mean_field(start.log()[:, None], [pairs(1.0)], 0))


def test_messages_of_several_kernels_add_up():
    start = torch.rand((4, 3, 5), generator=torch.Generator().manual_seed(0)).softmax(dim=-1)
    found = mean_field(start.log(), [pairs(1.0), pairs(0.5)], 4)
    q = start.double().numpy()
    for _ in range(4):
        message = 1.5 * np.repeat(q.reshape(2, 2, 3, 5).sum(axis=1), 2, axis=0)
        q = start.double().numpy() * np.exp(message)
        q /= q.sum(axis=-1, keepdims=True)
    assert found.numpy() == pytest.approx(q, abs=1e-6)


@pytest.mark.parametrize("classes", [2, 7, 16, 21])
def test_neither_threads_nor_the_batch_change_a_marginal(classes):
    features = torch.rand((5, 5000), generator=torch.Generator().manual_seed(0)) * 4
    start = torch.rand((5000, 3, classes), generator=torch.Generator().manual_seed(1)).log()
    threads = torch.get_num_threads()
    kernel = build(features)
    try:
        torch.set_num_threads(1)
        one = mean_field(start, [kernel], 3)
        alone = mean_field(start[:, 1:2].contiguous(), [kernel], 3)
        torch.set_num_threads(3)
        three = mean_field(start, [kernel], 3)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one, three) and torch.equal(one[:, 1:2], alone)


def test_photos_larger_than_a_chunk(monkeypatch):
    photo, probabilities = drawn()
    whole = dense_crf(photo, probabilities)
    monkeypatch.setattr("wsseg_ray.segmentation.crf.CHUNK", 50)
    assert (dense_crf(photo, probabilities) == whole).all()


@pytest.mark.parametrize("width", ["bilateral_xy", "bilateral_rgb", "spatial_xy"])
@pytest.mark.parametrize("value", [0, -1, 1e-12])
def test_refuses_widths_that_make_no_kernel(width, value):
    with pytest.raises(ValueError, match="must be"):
        dense_crf(*drawn(), **{width: value})
