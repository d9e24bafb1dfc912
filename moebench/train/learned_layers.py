"""The learned operating point of a router, read off an evaluation on a text."""

import numpy as np
from numpy.typing import NDArray

from moebench.spec.learned_point import NUM_QUANTILES, LearnedLayer
from moebench.train.quality import Evaluation
from moebench.train.router_use import correlation

DIGITS = 6
"""Decimals that are kept, so that a file of a deep model stays small."""


def learned_layers(evaluation: Evaluation, top_k: int) -> tuple[LearnedLayer, ...]:
    """The layers of a `LearnedPoint`.

    Args:
        top_k: Experts a token of the base, by which the counts are divided.
    """
    k, layers = evaluation.k, []
    for index, own in enumerate(k):
        marginals = evaluation.visits[index].mean(axis=(0, 1))
        lag = correlation(own[:, :-1], own[:, 1:])
        below = correlation(k[index - 1], own) if index else None
        layers.append(
            LearnedLayer(
                depth=(index + 0.5) / len(k),
                k_quantiles=tuple((k_quantiles(own.ravel()) / top_k).round(DIGITS).tolist()),
                expert_marginals=tuple(marginals.round(DIGITS).tolist()),
                lag_correlation=None if lag is None else round(lag, DIGITS),
                below_correlation=None if below is None else round(below, DIGITS),
            )
        )
    return tuple(layers)


def k_quantiles(k: NDArray[np.integer]) -> NDArray[np.float64]:
    """Means of the tokens' k in `NUM_QUANTILES` equal groups in ascending order; their mean is k's.

    A token at the edge of two groups counts for both, in parts.
    """
    sums = np.concatenate(([0.0], np.sort(k).cumsum()))
    edges = np.linspace(0, len(k), NUM_QUANTILES + 1)
    means = np.diff(np.interp(edges, np.arange(len(sums)), sums)) * NUM_QUANTILES / len(k)
    return np.asarray(np.maximum.accumulate(means))
