import pytest

from wsseg_ray.datasets.place import Place
from wsseg_ray.errors import DatasetError


def test_names_of_a_place(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert Place.at("a/b").uri == f"{tmp_path}/a/b"
    remote = Place.at("s3://key:secret@bucket/pets/?scheme=http") / "cats/a.tar.jpg"
    assert remote.uri == "s3://key:secret@bucket/pets/cats/a.tar.jpg?scheme=http"
    assert (remote.name, remote.stem, remote.suffix) == ("a.tar.jpg", "a.tar", ".jpg")
    assert remote.parent.uri == "s3://key:secret@bucket/pets/cats?scheme=http" and remote.parent / "." == remote.parent
    assert "secret" not in str(remote)
    hostile = Place("s3://bucket/cats?scheme=http") / "a?b#c%20.jpg"
    assert hostile.uri == "s3://bucket/cats/a%3Fb%23c%2520.jpg?scheme=http" and hostile.name == "a?b#c%20.jpg"
    assert (Place("/x?y") / "z").uri == "/x?y/z"  # a path has no query


def test_what_lies_in_a_folder(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/2.jpg").write_text("x")
    (tmp_path / "a/1.jpg").write_bytes(b"\xff\n\xff")
    place = Place.at(tmp_path)
    assert (place / "a").entries() == {"b": True, "1.jpg": False} and (place / "none").entries() == {}
    assert place.files() == ["a/1.jpg", "a/b/2.jpg"]
    assert (place / "a").is_dir() and not (place / "a").is_file() and (place / "a/1.jpg").is_file()
    assert (place / "a/b/2.jpg").read_text() == "x"
    with pytest.raises(DatasetError, match="line 1: not UTF-8"):
        (place / "a/1.jpg").read_text()
    with pytest.raises(DatasetError, match=r"none\.jpg cannot be read"):
        (place / "none.jpg").read_bytes()
