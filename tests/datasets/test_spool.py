"""Listings that lie in a temporary file."""

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsseg_ray.datasets import Photo
from wsseg_ray.datasets.spool import TOGETHER, Photos, Spool, digest_of
from wsseg_ray.errors import DatasetError

NAMES = st.lists(st.text(min_size=1, max_size=5), unique=True, max_size=40)


def photos(names, split="train", **more):
    return [Photo(name, f"/photos/{number}.jpg", (0,), split, **more) for number, name in enumerate(names)]


def test_a_spool_is_gone_through_many_times_at_a_time():
    things = [(n, str(n)) for n in range(3 * TOGETHER + 5)]
    spool = Spool(iter(things))
    assert list(zip(spool, spool, strict=True)) == list(zip(things, things, strict=True))
    assert list(spool) == things and list(Spool([])) == []


@given(train=NAMES, val=NAMES, limit=st.none() | st.integers(1, 50))
def test_photos_are_sorted_and_spread_as_lists_would_be(train, val, limit):
    """By split and image_id, letters in the order that Python has, also those that are no letters in UTF-8."""
    val = [name for name in val if name not in train]
    given_ = photos(val, "val", error="bad") + photos(train, mask_uri="/m.png")
    wanted = []
    for split in ("train", "val"):
        own = sorted((photo for photo in given_ if photo.split == split), key=lambda photo: photo.image_id)
        few = len(own) if limit is None else min(limit, len(own))
        wanted += [own[i * len(own) // few] for i in range(few)]
    found = Photos(given_, limit)
    assert list(found) == wanted and found == wanted and len(found) == len(wanted)


def test_a_photo_with_neither_labels_nor_an_error_is_left_out():
    every = [*photos("ab"), Photo("c", "/c.jpg", (), "train"), Photo("d", "", (), "train", error="missing")]
    assert [photo.image_id for photo in Photos(every)] == ["a", "b", "d"]


def test_files_that_share_a_name_keep_their_suffix():
    every = [
        Photo("a", "/a.jpg", (0,), "train"),
        Photo("a", "/a.png", (1,), "val"),
        Photo("b", "/b.png", (0,), "train"),
    ]
    assert [(photo.image_id, photo.split) for photo in Photos(every)] == [
        ("a_jpg", "train"),
        ("b", "train"),
        ("a_png", "val"),
    ]


@pytest.mark.parametrize("uris", [("/x/a.jpg", "/y/a.jpg"), ("/a.jpg", "/a.png", "/b/a.png")])
def test_two_photos_with_one_name_are_refused(uris):
    with pytest.raises(DatasetError, match=f"image id 'a' occurs twice: {uris[0]} in train, {uris[1]} in train"):
        Photos([Photo("a", uri, (0,), "train") for uri in uris])


def test_a_digest_tells_listings_apart():
    one = photos("ab")
    others = [photos("ac"), photos("a"), photos("ab", "val"), photos("ab", mask_uri="/m.png"), photos("ab", error="x")]
    assert digest_of(one) == digest_of(Photos(one)) and len({digest_of(own) for own in [one, *others]}) == 6
    assert digest_of(photos(["\ud800"])) != digest_of(photos(["\ud801"]))


def test_memory_does_not_grow_with_the_photos():
    """Of Python: SQLite's own cache is bounded by CACHE_KB."""

    def peak(count: int) -> int:
        tracemalloc.start()
        found = Photos(Photo(f"{n:07d}", f"/photos/{n:07d}.jpg", (n % 5,), "train") for n in range(count))
        assert digest_of(found) and len(found) == count
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(10)
    assert peak(40_000) < peak(2_000) + 300_000
