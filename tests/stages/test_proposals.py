"""Proposals of photos, with a backbone that finds contours and without, and from files: the bits of the plain call."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from tests.runs import by_name, empty_job, equal
from wsseg_ray import pipeline, recipe
from wsseg_ray.backbones import BACKBONES
from wsseg_ray.datasets import Listing, Photo
from wsseg_ray.datasets.pixels import read_photo
from wsseg_ray.errors import RecipeError, WeightsError
from wsseg_ray.proposals import ProposalFileError, generate
from wsseg_ray.proposals.boundaries import BOUNDARIES
from wsseg_ray.proposals.boundaries.hypercolumn import find, load
from wsseg_ray.proposals.regions import RegionProposals
from wsseg_ray.stages import proposals
from wsseg_ray.stages.rows import PhotoRow, regions_of
from wsseg_ray.storage import RunDirectory, read_bytes
from wsseg_ray.tables import IMAGES, PROPOSALS, ProposalRow


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    """A VGG-16 backbone at random."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "vgg16.pth"
    torch.save(
        {f"features.{name}": tensor for name, tensor in BACKBONES.get("vgg16").build(False).state_dict().items()}, path
    )
    return str(path)


def ran(place: str, settings: list[str]) -> tuple[dict[str, str], dict[str, ProposalRow]]:
    """Where the photos lie, and their proposals."""
    pipeline.run(recipe.load("demo", [*settings, "dataset.limit=3"]), place, until="proposals")
    run = RunDirectory.at(place).now()
    return {row.image_id: row.uri for row in run.rows(IMAGES)}, by_name(run, PROPOSALS)


@pytest.mark.parametrize("backbone", [False, pytest.param(True, marks=pytest.mark.run)])
def test_a_run_gives_the_bits_of_the_plain_call(tiny, weights, backbone, tmp_path):
    settings = [
        *tiny,
        "runtime.engine=local",
        *(["proposals.backbone=vgg16", f"proposals.weights={weights}"] if backbone else []),
    ]
    uris, found = ran(str(tmp_path), settings)
    assert len(found) == 3
    finder = BOUNDARIES.get("vgg16")
    network = load(finder, weights) if backbone else None
    torch.set_num_threads(1)
    for image_id, row in found.items():
        photo = read_photo(read_bytes(uris[image_id]), None)
        plain, objectness = generate.generate(photo, 40, find(finder, network, photo) if network else None)
        stored = regions_of(row)
        assert (stored.superpixels == plain.superpixels).all()
        assert (stored.membership != plain.membership).nnz == 0
        assert (row.objectness == objectness).all() and len(row.hypotheses) > 0


@pytest.mark.long
def test_one_worker_many_workers_and_no_ray_give_the_same_bits(cluster, tiny, weights, tmp_path):
    settings = [*tiny, "proposals.backbone=vgg16", f"proposals.weights={weights}"]
    _, plain = ran(str(tmp_path / "no-ray"), [*settings, "runtime.engine=local"])
    for workers in (1, 2):
        _, found = ran(str(tmp_path / f"{workers}"), [*settings, f"runtime.num_workers={workers}"])
        assert found.keys() == plain.keys() and all(equal(found[i], plain[i]) for i in plain)


def test_unusable_weights_are_an_error_before_any_work(tiny, tmp_path):
    with pytest.raises(WeightsError, match=r"nowhere\.pth cannot be read"):
        ran(str(tmp_path), [*tiny, "proposals={backbone: vgg16, weights: nowhere.pth}"])
    assert not (tmp_path / "images").exists()


def test_what_runs_on_what():
    """Actors hold the backbone that finds contours; files and colours alone need none."""
    for settings, workers, steps in (
        ([], "tasks", 1),
        (["proposals.backbone=vgg16"], "actors", 3),
        (["proposals.backbone=vgg16", "proposals.source=mcg"], "tasks", 1),
    ):
        loaded = recipe.load("demo", settings)
        assert proposals.STAGE.workers(loaded) == workers
        assert len(proposals.STAGE.work(pipeline.Job(None, loaded, None)).steps) == steps


# ---- files


LISTING = Listing(["x"], [1], [Photo(name, f"/{name}.jpg", (0,), "train") for name in "ab"])


def test_a_source_of_files_needs_their_folder():
    (finding,) = proposals.STAGE.check(recipe.load("demo", ["proposals.source=mcg"]), LISTING)
    assert isinstance(finding.problem, RecipeError) and "proposals.root: source 'mcg' needs" in finding.text


def test_files_that_are_missing_are_counted(tmp_path):
    (tmp_path / "a.mat").write_bytes(b"")
    loaded = recipe.load("demo", ["proposals.source=mcg", f"proposals.root={tmp_path}"])
    (finding,) = proposals.STAGE.check(loaded, LISTING)
    assert not finding.good and finding.problem is None, "a run goes on: it is these photos that fail"
    assert finding.text == f"1 of 2 training photos have a file in {tmp_path}"


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


def test_a_larger_file_is_shrunk_with_its_photo(monkeypatch, tmp_path):
    """`dataset.max_side` shrinks the photos; the files were made of the photos as they were."""
    superpixels = np.arange(2).repeat(80)[None].repeat(120, axis=0)
    found = from_file(monkeypatch, tmp_path, RegionProposals(superpixels, np.array([[1, 0], [1, 1]])))
    assert (found.height, found.width) == found.superpixels.shape == (60, 80)
    assert (found.superpixels == np.arange(2).repeat(40)).all() and found.indptr.tolist() == [0, 1, 3]


def from_file(monkeypatch, folder, regions) -> ProposalRow:
    """The row of a photo of 80x60 px, whose file has these regions: through a source of the user's own."""
    (folder / "a.txt").write_bytes(b"")
    (folder / "my_source.py").write_text(
        "from wsseg_ray.proposals import Source\n"
        "regions = []\n"
        "SOURCE = Source(from_file=lambda data, count: regions[-1], suffix='.txt')\n"
    )
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "my_source", raising=False)
    import my_source

    my_source.regions.append((regions, np.ones(len(regions))))
    settings = ["proposals.source=my_source:SOURCE", f"proposals.root={folder}", "hcp.min_area=0"]
    job = empty_job(folder / "run", *settings)
    (step,) = proposals.STAGE.work(job).steps
    return step.kernel(job, PhotoRow("a", height=60, width=80))
