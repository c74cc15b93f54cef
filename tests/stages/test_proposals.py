"""The generator under Ray: the same bits as the plain call, on one worker and on two, with and without a trunk."""

import numpy as np
import pytest
import torch

from wsseg_ray import pipeline, recipe
from wsseg_ray.datasets.pixels import read_photo
from wsseg_ray.errors import WeightsError
from wsseg_ray.hcp.trunk import conv_layers
from wsseg_ray.proposals import ProposalFileError, contours, generate
from wsseg_ray.proposals.regions import RegionProposals
from wsseg_ray.stages import proposals
from wsseg_ray.stages.rows import regions_of
from wsseg_ray.tables import RunDirectory, read_bytes


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    """A VGG-16 trunk at random."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "vgg16.pth"
    torch.save({f"features.{name}": tensor for name, tensor in conv_layers("vgg16").state_dict().items()}, path)
    return str(path)


def ran(place: str, settings: list[str]) -> tuple[list[dict], list[dict]]:
    pipeline.run(recipe.load("demo", settings), place, until="proposals")
    run = RunDirectory.at(place)
    return list(run.rows("images")), sorted(run.rows("proposals"), key=lambda row: row["image_id"])


@pytest.mark.parametrize("trunk", [False, True])
def test_one_worker_many_workers_and_no_ray_give_the_same_bits(cluster, tiny, weights, trunk, tmp_path):
    settings = [*tiny, "dataset.limit=4", *([f"proposals.weights={weights}"] if trunk else [])]
    images, one = ran(str(tmp_path / "one"), settings)
    _, two = ran(str(tmp_path / "two"), [*settings, "runtime.num_workers=2"])
    assert len(one) == 4
    uris = {row["image_id"]: row["uri"] for row in images}
    network = contours.contour_trunk(weights) if trunk else None
    for first, second in zip(one, two, strict=True):
        assert first.keys() == second.keys()
        assert all(np.array_equal(first[key], second[key]) for key in first)
        photo = read_photo(read_bytes(uris[first["image_id"]]), None)
        plain, objectness = generate.generate(photo, 40, contours.trunk_boundary(network, photo) if trunk else None)
        stored = regions_of(first)
        assert (stored.superpixels == plain.superpixels).all()
        assert (stored.membership != plain.membership).nnz == 0
        assert (np.asarray(first["objectness"]) == objectness).all()


def test_unusable_weights_are_an_error_before_any_work(tiny, tmp_path):
    with pytest.raises(WeightsError, match=r"nowhere\.pth cannot be read"):
        ran(str(tmp_path), [*tiny, "proposals.weights=nowhere.pth"])
    assert not (tmp_path / "images").exists()


@pytest.mark.parametrize(
    ("size", "message"), [((30, 40), "for a photo of 80x60 px"), ((80, 60), "for a photo of 80x60 px")]
)
def test_a_file_of_another_size_is_refused(monkeypatch, tmp_path, size, message):
    whole = RegionProposals(np.zeros(size, int), np.ones((1, 1)))
    with pytest.raises(ProposalFileError, match=message):
        from_file(monkeypatch, tmp_path, whole)


def test_a_file_whose_proposals_vanish_is_refused(monkeypatch, tmp_path):
    superpixels = np.zeros((120, 160), int)
    superpixels[0, 0] = 1  # a pixel that shrinking loses
    with pytest.raises(ProposalFileError, match="no proposal is left at 80x60 px"):
        from_file(monkeypatch, tmp_path, RegionProposals(superpixels, np.array([[0, 1]])))


def from_file(monkeypatch, folder, regions):
    (folder / "a.json").write_bytes(b"")
    monkeypatch.setitem(proposals.READERS, "masks", (lambda data, count: (regions, np.ones(len(regions))), ".json"))
    job = pipeline.Job(None, recipe.load("demo", ["proposals.source=masks", f"proposals.root={folder}"]), None)
    return proposals._from_file(job, {"image_id": "a", "height": 60, "width": 80})
