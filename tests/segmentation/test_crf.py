import builtins

import numpy as np
import pytest

from wsseg_ray.segmentation.crf import dense_crf


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


def test_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without_pydensecrf(name, *args, **kwargs):
        if name.startswith("pydensecrf"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_pydensecrf)
    with pytest.raises(ImportError, match="pip install pydensecrf2"):
        dense_crf(np.zeros((2, 2, 3), np.uint8), np.ones((1, 2, 2)))
