import numpy as np
import pytest
from scipy import sparse

from benchmarks.localization import Photo, count_part, held_out, keep_part, measure, read, superpixel_means
from wsseg_ray.engine.stage import open_run
from wsseg_ray.proposals.regions import RegionProposals


@pytest.fixture(scope="module")
def run(tiny_local):
    job = open_run(tiny_local[1])
    return job, *read(job)


def test_the_ablation_of_the_run_is_among_the_rows(run):
    job, candidates, photos = run
    assert len(photos) == 12
    rows = dict(keep_part(job, candidates, photos))
    ablation = job.run.read_json("metrics.json")["supervision"]["ablation"]
    names = {"all": "none", "raw: nearest 0.5": "nearest", "raw: farthest 0.5": "farthest", "random 0.5": "random"}
    names |= {f"{keep} 0.5": keep for keep in ("norm", "score", "area")}
    for name, keep in names.items():
        found = measure(job, photos, rows[name], crf=False)
        assert found["/max"] == pytest.approx(ablation[keep]["localization_miou"]), name
        assert found["rough"] == pytest.approx(ablation[keep]["rough_mask_miou"]), name


def test_fewer_and_more_candidates(run):
    job, candidates, photos = run
    rows = dict(count_part(job, candidates, photos))
    all_of_them = dict(keep_part(job, candidates, photos))["all"]
    own = f"score above {job.recipe.hcp.threshold}"
    assert measure(job, photos, rows[own], False) == measure(job, photos, all_of_them, False)
    assert measure(job, photos, rows["the best 10"], False) != measure(job, photos, all_of_them, False)


def test_a_threshold_is_chosen_on_the_other_half():
    right, wrong = np.array([[2, 0], [0, 2]]), np.array([[0, 2], [2, 0]])
    assert held_out(np.array([[right, wrong], [right, wrong]])) == 100
    assert held_out(np.array([[right, wrong], [wrong, right]])) == 0


def test_means_over_superpixels():
    superpixels = np.array([[0, 0, 1]])
    photo = Photo(
        "a", None, RegionProposals(superpixels, sparse.csr_array(np.ones((1, 2), np.float32))), [0], None, None, None, 0
    )
    assert superpixel_means(lambda _: np.array([[[0.2, 0.4, 1.0]]]))(photo).tolist() == [[pytest.approx(0.3), 1.0]]
