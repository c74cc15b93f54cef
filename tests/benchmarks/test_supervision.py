from dataclasses import replace

import numpy as np
import pytest

from benchmarks.supervision import by_other_half, by_threshold, labels_by_crf, rows
from wsseg_ray.engine.stage import open_run
from wsseg_ray.evaluation import iou
from wsseg_ray.stages.rows import regions_of, truth_of
from wsseg_ray.stages.supervise import evidence_of
from wsseg_ray.supervision import READINGS, REFINERS


def test_each_half_uses_the_threshold_of_the_other():
    right, wrong = np.array([[2, 0], [0, 2]]), np.array([[0, 2], [2, 0]])
    assert by_other_half(np.array([[right, wrong], [right, wrong]])) == 100
    assert by_other_half(np.array([[right, wrong], [wrong, right]])) == 0


def test_it_measures_what_the_run_measured(tiny_local):
    job = open_run(tiny_local[1])
    every, found = rows(job, 100), []
    assert len(every) == 12 and len(rows(job, 5)) == 5
    for row in every:
        regions, classes = regions_of(row), len(job.classes) + 1
        evidence = evidence_of(job, row, regions, row.kept)
        evidence = replace(evidence, maps=READINGS.get(job.recipe.supervision.reading)(evidence))
        for name in job.recipe.supervision.refiners:
            evidence = replace(evidence, maps=REFINERS.get(name)(evidence))
        found.append(by_threshold(evidence, iou.superpixel_counts(regions.superpixels, truth_of(job, row), classes)))
        drawn = labels_by_crf(job, evidence, evidence.read_photo())
        assert drawn.shape == regions.superpixels.shape and set(np.unique(drawn)) <= {0, *(row.labels + 1)}
    measured = job.run.read_json("metrics.json")["supervision"]["localization_best_miou"]
    assert max(map(iou.miou, np.sum(found, axis=0))) == pytest.approx(measured)
