"""The learned operating point of a router, read off an evaluation on a text."""

import numpy as np

from moebench.spec import learned_file
from moebench.spec.learned_point import LearnedLayer
from moebench.train.quality import Evaluation


def learned_layers(evaluation: Evaluation, top_k: int) -> tuple[LearnedLayer, ...]:
    """The layers of a `LearnedPoint`.

    Args:
        top_k: Experts a token of the base, by which the counts are divided.
    """
    k = evaluation.k
    lags = [learned_file.correlation(own[:, :-1], own[:, 1:]) for own in k]
    below = [None, *(learned_file.correlation(k[i - 1], k[i]) for i in range(1, len(k)))]
    histograms = [np.bincount(own.ravel()).tolist() for own in k]
    shares = evaluation.visits.sum(axis=(1, 2)).tolist()
    return learned_file.learned_layers(top_k, histograms, shares, (lags, below))
