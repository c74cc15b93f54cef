"""Which regions the rough mask ranks, by hand."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse

from tests.runs import empty_job
from wsseg_ray.engine.stage import Job, open_run
from wsseg_ray.evaluation import iou
from wsseg_ray.proposals.regions import RegionProposals
from wsseg_ray.stages.supervise import STAGE, EvidenceRow
from wsseg_ray.tables import SUPERVISION, SupervisionRow

# three superpixels of one pixel; a proposal for each, and one for the first two
REGIONS = RegionProposals(
    np.array([[0, 1, 2]]), sparse.csr_array(np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]], np.float32))
)


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        ("all", [0, 0, 5]),  # proposal 2 has the best value, 1.5 + 0
        ("candidates", [0, 5, 0]),  # of the candidates 0, 1 and 3, proposal 1: 0.9 + 0, above 0.2 + 0.5 and -0.5 + 1
    ],
)
def test_the_pool_is_all_regions_or_the_candidates_whether_kept_or_not(tmp_path, pool, expected):
    job = empty_job(tmp_path, f"supervision={{pool: {pool}, regions: 1, refiners: []}}", classes="abcde")
    kept = [False, False, True]  # the map is proposal 0 alone
    found = supervised(job, evidence(kept=kept))
    assert found.maps.tolist() == [[1, 0, 0]] and found.mask.tolist() == expected
    np.testing.assert_allclose(found.maps_unrefined, [[2 / 3, 2 / 3, 0]], rtol=1e-3)
    assert len(found.quality) == len(found.candidate_iou) == 0, "there is no true mask"


def evidence(**more) -> EvidenceRow:
    row = EvidenceRow("a", labels=np.array([4]), scores=np.array([[-0.5, 0.9, 1.5, 0.2]]), height=1, width=3)
    row.superpixels, row.indptr, row.indices = (
        REGIONS.superpixels,
        REGIONS.membership.indptr,
        REGIONS.membership.indices,
    )
    row.candidate, row.candidate_label = np.array([3, 1, 0]), np.array([4, 4, 4])
    row.distance = row.norm = row.area = np.ones(3)
    row.objectness, row.is_mask = np.ones(4), np.zeros(4)
    for name, value in more.items():
        setattr(row, name, np.asarray(value))
    return row


def supervised(job: Job, row: EvidenceRow) -> SupervisionRow:
    (step,) = STAGE.work(job).steps
    return step.kernel(job, row)


def test_refiners_are_applied_in_their_order(tmp_path, monkeypatch):
    """Each is given the maps of the one before, and can read the photo."""
    (tmp_path / "my_refiners.py").write_text(
        "import numpy as np\n"
        "def half(evidence):\n"
        "    assert evidence.labels == [4] and evidence.scores.shape == (1, 4) and callable(evidence.read_photo)\n"
        "    return evidence.maps / 2\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for refiners, largest in (("max, my_refiners:half", 0.5), ("my_refiners:half, max", 1.0)):
        job = empty_job(tmp_path, f"supervision.refiners=[{refiners}]", classes="abcde")
        assert supervised(job, evidence(kept=[True, True, True])).maps.max() == largest


def test_what_is_measured_of_a_photo_with_a_true_mask(tiny_local):
    """Of the supervision in use, of all candidates, of every way to keep them and every reading of the scores.

    Each counts every pixel once.
    """
    job = open_run(tiny_local[1])
    classes = len(job.classes) + 1
    for row in job.run.rows(SUPERVISION):
        quality = row.quality.reshape(-1, 2 + len(iou.THRESHOLDS), classes, classes)
        assert len(quality) == 2 + 6 + 2 and len(row.candidate_iou) == len(row.labels)
        assert (
            len(np.unique(quality.sum(axis=(2, 3)))) == 1
            and ((row.candidate_iou >= 0) & (row.candidate_iou <= 100)).all()
        )
        assert (quality[0] == quality[2]).all(), "the demo keeps the nearest, which is the first of the ways"
        assert (quality[0] == quality[2 + 6]).all(), (
            "the demo's reading is the paper's, which is the first of the readings"
        )


def test_a_reading_and_a_mask_of_what_is_sure(tmp_path):
    """The dropped proposal 0 has no weight: superpixel 0 has the score of proposal 3 alone."""
    settings = "supervision={reading: mean_score, mask: sure, background_below: 0.25, object_from: 0.5}"
    row = evidence(kept=[True, True, False], scores=[[0.9, 0.0, 0.1, 0.3]])
    found = supervised(empty_job(tmp_path, settings, classes="abcde"), row)
    weight = np.sqrt(0.5)  # of proposal 3, which is two pixels large
    np.testing.assert_allclose(found.maps, [[0.3, 0.3 * weight / (1 + weight), 0.1]], rtol=2e-3)
    assert found.mask.tolist() == [255, 0, 0]
    np.testing.assert_allclose(found.maps_unrefined[0, 0], (0.9 + 0.3 * weight) / (1 + weight), rtol=2e-3)
    assert found.mask_unrefined.tolist() == [5, 0, 0]


def test_the_papers_maps_stand_beside_those_of_another_reading(tiny_local):
    job = open_run(tiny_local[1])
    (plain,) = {len(strip.maps) / len(strip.labels) for strip in STAGE.strips(job)}
    section = job.recipe.supervision.model_copy(update={"reading": "mean_score"})
    strips = STAGE.strips(replace(job, recipe=job.recipe.model_copy(update={"supervision": section})))
    assert plain == 1 and strips
    for strip in strips:
        assert [name for name, _ in strip.maps] == [n for label in strip.labels for n in (label, f"{label}, votes")]
        assert all(p.shape == strip.photo.shape[:2] and p.max() <= 1 for _, p in strip.maps)
