"""Which candidates of a photo are kept, for the stages that ask."""

from __future__ import annotations

import numpy as np

from wsseg_ray.engine.stage import Job, photo_number
from wsseg_ray.refinement.selection import Candidates, Keep, select
from wsseg_ray.tables import ScoreRow


def kept_candidates(job: Job, row: ScoreRow, keep: Keep, label: int, distance: np.ndarray) -> np.ndarray:
    """Whether each candidate of a class of a photo is kept, (n_k,) bool.

    Arguments:
        row: has the photo's labels, scores and candidates.
        label: the class.
        distance: (n_k,) Eq. (1) of the candidates of this class.
    """
    own = row.candidate_label == label
    scores = row.scores[int(np.flatnonzero(row.labels == label)[0])].astype(np.float64)
    seed = [job.recipe.seed, photo_number(row.image_id), int(label)]
    candidates = Candidates(distance, row.norm[own], scores[row.candidate[own]], row.area[own], seed)
    return select(keep, job.recipe.refinement.fraction, candidates)
