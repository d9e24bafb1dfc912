"""Files of learned operating points: made from counts, written, and read back.

Those that ship lie in data/operating_points; others are a user's own.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moebench.files import replace_file
from moebench.spec.learned_point import NUM_QUANTILES, LearnedLayer, LearnedPoint
from moebench.spec.schema import Glossary, encode
from moebench.spec.shipped import load_shipped

DIGITS = 6
"""Decimals of a number in a file."""
Correlations = Sequence[float | None]


def load_learned(name: str) -> LearnedPoint:
    """The learned operating point of a shipped name, or of a file whose name ends in .toml."""
    point: LearnedPoint = load_shipped(LearnedPoint, "operating_points", name, Glossary())
    return point


def write_learned(point: LearnedPoint, path: Path) -> None:
    """Write a learned operating point as a TOML file that `load_learned` reads."""
    import tomli_w  # only what writes a file needs it

    table = encode(point)
    table["layers"] = [
        {key: value for key, value in layer.items() if value is not None}
        for layer in table["layers"]
    ]
    replace_file(path, tomli_w.dumps(table).encode())


def learned_layers(
    top_k: int,
    k_histograms: Sequence[Sequence[float]],
    expert_shares: Sequence[Sequence[float]],
    correlations: tuple[Correlations, Correlations],
) -> tuple[LearnedLayer, ...]:
    """The layers of a learned operating point, from what was counted in each.

    Args:
        top_k: of the base.
        k_histograms: by layer, tokens with 0, 1, 2, ... experts, on any scale.
        expert_shares: by layer, assignments of each expert, on any scale.
        correlations: by layer, that of k with the next token's, and with the layer below's.
    """
    columns = zip(k_histograms, expert_shares, *correlations, strict=True)
    layers = []
    for index, (histogram, shares, lag, below) in enumerate(columns):
        quantiles = k_quantiles(histogram, top_k)
        mean = top_k * sum(quantiles) / NUM_QUANTILES
        marginals = mean * np.asarray(shares, dtype=float) / sum(shares)
        layers.append(
            LearnedLayer(
                depth=(index + 0.5) / len(k_histograms),
                k_quantiles=quantiles,
                expert_marginals=tuple(marginals.round(DIGITS).tolist()),
                lag_correlation=None if lag is None else round(lag, DIGITS),
                below_correlation=None if below is None else round(below, DIGITS),
            )
        )
    return tuple(layers)


def correlation(first: NDArray[np.number], second: NDArray[np.number]) -> float | None:
    """Pearson's correlation over all entries; None where one of them does not vary."""
    a, b = first.ravel().astype(np.float64), second.ravel().astype(np.float64)
    if not a.size or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


def k_quantiles(histogram: Sequence[float], top_k: int) -> tuple[float, ...]:
    """K / top_k in ascending order, as means over `NUM_QUANTILES` equal groups of the tokens.

    Args:
        histogram: tokens with 0, 1, 2, ... experts, on any scale.
        top_k: experts of a token of the base.
    """
    shares = np.asarray(histogram, dtype=float) / sum(histogram)
    ends = np.concatenate(([0.0], np.cumsum(shares)))
    # The integral of the quantile function is straight between the ends of each count.
    integral = np.concatenate(([0.0], np.cumsum(shares * np.arange(len(shares)))))
    edges = np.linspace(0, ends[-1], NUM_QUANTILES + 1)
    groups = NUM_QUANTILES * np.diff(np.interp(edges, ends, integral)) / top_k
    return tuple(np.maximum.accumulate(groups.round(DIGITS)).tolist())
