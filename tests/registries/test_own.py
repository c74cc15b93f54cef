"""Variants of the user's own, in a file beside the recipe, are named by an import path."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse

from wsseg_ray import recipe, registry
from wsseg_ray.errors import RecipeError
from wsseg_ray.proposals.regions import RegionProposals
from wsseg_ray.refinement import KEEPS, METRICS
from wsseg_ray.refinement.distance import pairwise_sums
from wsseg_ray.refinement.selection import Candidates, select
from wsseg_ray.supervision import REFINERS, Evidence

MODULE = "wsseg_test_own"
CODE = """
import numpy as np
from wsseg_ray.refinement.distance import Metric

def pairs(queries, candidates):
    return np.abs(queries[:, None] - candidates).sum(axis=2)

MANHATTAN = Metric(pairs, lambda features, centre: features)

def typical(candidates):
    return np.abs(candidates.area - np.median(candidates.area))

def root(evidence):
    return np.sqrt(evidence.maps)
"""
RECIPE = f"""
refinement: {{metric: "{MODULE}:MANHATTAN", keep: "{MODULE}:typical"}}
supervision: {{refiners: [max, "{MODULE}:root"]}}
"""


@pytest.fixture
def own(tmp_path, monkeypatch) -> recipe.Recipe:
    """A recipe that names variants of a module beside it."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(registry, "_folders", [])
    (tmp_path / f"{MODULE}.py").write_text(CODE)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    yield recipe.load(str(tmp_path / "recipe.yaml"))
    sys.modules.pop(MODULE, None)


def test_the_recipes_folder_is_told_to_other_processes(own, tmp_path):
    assert str(tmp_path) in registry.folders()
    assert MODULE not in sys.modules  # reading a recipe runs none of the user's code


def test_a_metric(own):
    features, photo = np.array([[0.0, 0.0], [1.0, 2.0], [5.0, 0.0]], np.float32), np.array([0, 1, 1])
    total, others = pairwise_sums(features, photo, features, photo, METRICS.get(own.refinement.metric))
    assert total.tolist() == [(3 + 5) / 2, 3, 5] and others.tolist() == [1, 1, 1]
    assert not METRICS.get(own.refinement.metric).factors


def test_a_way_to_keep_candidates(own):
    none = np.zeros(4)
    candidates = Candidates(none, none, none, area=np.array([0.1, 0.3, 0.2, 0.9]), seed=[0])
    assert select(KEEPS.get(own.refinement.keep), 0.5, candidates).tolist() == [False, True, True, False]


def test_refiners_one_after_the_other(own):
    regions = RegionProposals(np.array([[0, 1]]), sparse.csr_array(np.eye(2, dtype=np.float32)))
    ones, none = np.ones(2), [np.array([], int)]
    evidence = Evidence(
        regions, [0], ones[None], ones, ones, none, none, np.array([[0.5, 0.125]]), read_photo=lambda: None
    )
    for name in own.supervision.refiners:
        evidence = replace(evidence, maps=REFINERS.get(name)(evidence))
    assert evidence.maps.tolist() == [[1, 0.5]]


def test_what_is_not_there_is_told(own):
    with pytest.raises(ValueError, match=rf"distance metric '{MODULE}:CHEBYSHEV' cannot be imported"):
        METRICS.get(f"{MODULE}:CHEBYSHEV")
    with pytest.raises(RecipeError, match=r"refinement\.keep: .*there is no module nowhere_else"):
        recipe.validate({"refinement": {"keep": "nowhere_else:typical"}})
