"""Loads of one rank's kernels in a call of a layer, expected over independent tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moebench.predict.arrays import Floats, Ints, OverCases

BLOCK_ROWS = (8, 16, 32, 64, 128, 256)
"""Row-tile heights for which padded tiles are counted."""
CASES_AT_ONCE = 128
"""Cases whose binomial probabilities are computed in one array, to bound its size."""


@dataclass(frozen=True)
class Loads(OverCases):
    """Work of one rank's grouped matmuls; arrays over cases."""

    distinct: Floats
    """[cases] experts of the rank that one call touches."""
    replayed: Floats
    """[cases] experts touched by all calls replayed in turn: what a warm L2 must hold."""
    copies: Floats
    """[cases] token copies (assignments) that fall on the rank's experts."""
    tiles: Floats
    """[cases, BLOCK_ROWS] row tiles, every expert's copies rounded up to whole blocks."""


def expected_loads(tokens_per_expert: Sequence[Floats], num_tokens: Sequence[int]) -> Loads:
    """Loads of independent tokens that choose the rank's experts with these expected counts.

    `tokens_per_expert` has one array [experts of the rank] a case, `num_tokens` the tokens of its
    step: no expert gets more.
    """
    groups = [
        np.unique(np.clip(counts / max(step, 1), 0.0, 1.0), return_counts=True)
        for counts, step in zip(tokens_per_expert, num_tokens, strict=True)
    ]
    sizes = [len(values) for values, _ in groups]
    marginal, repeats = (np.concatenate(part) for part in zip(*groups, strict=True))
    tokens = np.repeat(num_tokens, sizes)
    starts = np.cumsum([0, *sizes[:-1]])
    distinct = np.add.reduceat(repeats * (1 - (1 - marginal) ** tokens), starts)
    tiles = np.add.reduceat(repeats[:, None] * _binomial_tiles(marginal, tokens), starts, axis=0)
    copies = np.array([float(np.sum(counts)) for counts in tokens_per_expert])
    return Loads(distinct, distinct, copies, tiles)


def _binomial_tiles(marginal: Floats, tokens: Ints) -> Floats:
    """[cases, BLOCK_ROWS] expected row tiles of an expert with Binomial(tokens, marginal) copies.

    The j-th tile of b rows exists if more than (j - 1) b tokens chose the expert. Below eight
    standard deviations under the mean that is certain, above as many impossible; where the counts
    spread over many tiles, their remainder modulo the block is uniform.
    """
    blocks = np.array(BLOCK_ROWS, dtype=float)
    mean = (tokens * marginal)[:, None]
    deviation = np.sqrt(mean * (1 - marginal)[:, None])
    tiles: Floats = np.where(
        deviation > blocks, (mean + (blocks - 1) / 2) / blocks, np.ceil(mean / blocks)
    )
    certain = np.maximum(0.0, np.floor((mean - 8 * deviation) / blocks))
    starts = (certain[..., None] + np.arange(18)) * blocks[:, None]
    random = np.flatnonzero((deviation[:, 0] > 0) & (deviation[:, 0] <= blocks[-1]))
    for cases in np.split(random, range(CASES_AT_ONCE, len(random), CASES_AT_ONCE)):
        if len(cases):
            chance = binomial_survival(tokens[cases], marginal[cases], starts[cases])
            possible = starts[cases] <= (mean + 8 * deviation)[cases, :, None]
            counted = certain[cases] + np.where(possible, chance, 0.0).sum(axis=2)
            tiles[cases] = np.where(deviation[cases] > blocks, tiles[cases], counted)
    return tiles


def binomial_survival(tokens: Ints, marginal: Floats, above: Floats) -> Floats:
    """Probability that more than `above` of `tokens` independent tokens choose an expert.

    Probabilities of single counts are multiplied up from the most likely one, P(c + 1) / P(c) =
    (n - c) / (c + 1) p / (1 - p), and divided by their sum. Ten standard deviations and 60 counts
    away they are below 1e-22 of it. `scipy.special.betainc` gives the same to 12 digits, but its
    import takes longer than a whole prediction.

    `tokens` are n and `marginal` p, 0 < p < 1, both [cases]; `above` is [cases, ...], at least 0.
    """
    n, p = tokens[:, None].astype(float), marginal[:, None]
    odds = p / (1 - p)
    reach = int(10 * np.sqrt(n * p * (1 - p)).max() + 60)
    likeliest = np.minimum(np.floor((n + 1) * p), n)
    up, down = likeliest + np.arange(reach), likeliest - np.arange(reach)
    more = np.cumprod(np.maximum(n - up, 0) / (up + 1) * odds, axis=1)
    less = np.cumprod(np.maximum(down, 0) / (n - down + 1) / odds, axis=1)
    each = np.concatenate([less[:, ::-1], np.ones_like(n), more, np.zeros_like(n)], axis=1)
    at_least = np.cumsum(each[:, ::-1], axis=1)[:, ::-1]
    first = (likeliest - reach).reshape(-1, *[1] * (above.ndim - 1))
    place = np.clip(above + 1 - first, 0, each.shape[1] - 1).astype(np.int64)
    chance = np.take_along_axis(at_least, place.reshape(len(n), -1), axis=1) / at_least[:, :1]
    return np.asarray(chance.reshape(above.shape))
