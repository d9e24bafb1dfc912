"""A learned operating point carried over to a model: its counts, its experts, and what differs.

k / top_k is kept where top_k differs, and the share of the traffic that the busiest part of the
experts takes where their number differs. One layer gets the mean over depth.
"""

import numpy as np

from moebench.spec.case import OperatingPoint
from moebench.spec.learned_point import LearnedPoint
from moebench.spec.model import ModelSpec

SNAP = 1e-5
"""Counts this near to a whole number are whole: the file has six decimals."""
LEAST_SHARE = 1e-6
"""Share of an expert that no token ran: a token of many experts may still need it."""


def carried_point(point: LearnedPoint, model: ModelSpec, fewest: int, most: int) -> OperatingPoint:
    """How a router that runs `fewest` to `most` experts a token would route on a model."""
    return OperatingPoint(
        carried_counts(point, model.top_k, fewest, most),
        point.origin,
        f"{point.label}: {point.source}",
        expert_shares=carried_shares(point, model.num_experts),
    )


def carried_mean(point: LearnedPoint, top_k: int) -> float:
    """Mean routed experts a token on a base of this top_k."""
    return point.mean_k * top_k / point.top_k


def carried_counts(point: LearnedPoint, top_k: int, fewest: int, most: int) -> tuple[float, ...]:
    """Probabilities of 0, 1, 2, ... experts on a base of this top_k, mean over depth.

    Counts between two whole numbers are rounded up as often as keeps their mean. Where counts fall
    below `fewest` or above `most`, all are moved by one number that keeps it too. A mean outside
    `fewest` to `most` is refused.
    """
    counts = top_k * np.concatenate([layer.k_quantiles for layer in point.layers])
    counts = np.where(abs(counts - counts.round()) < SNAP, counts.round(), counts)
    mean = float(counts.mean())
    if not fewest <= mean <= most:
        raise ValueError(
            f"{point.label}: found a mean of {mean:.4g} experts a token at top_k = {top_k}, "
            f"expected {fewest} to {most}, which is what the router can run"
        )
    low, high = -float(counts.max()), float(most)
    if fewest <= counts.min() and counts.max() <= most:
        low = high = 0.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        is_low = np.clip(counts + middle, fewest, most).mean() < mean
        low, high = (middle, high) if is_low else (low, middle)
    counts = np.clip(counts + low, fewest, most)
    below = np.floor(counts).astype(int)
    chances = np.bincount(below, 1 - (counts - below), most + 2)
    chances += np.bincount(below + 1, counts - below, most + 2)
    found = np.trim_zeros(chances / len(counts), "b")
    return tuple(found.tolist())


def carried_shares(point: LearnedPoint, num_experts: int) -> tuple[float, ...]:
    """Shares of the experts of another number, the busiest first; they sum to 1.

    The experts of several layers have nothing to do with one another, so that layers are averaged
    over the ranks of their experts. The busiest 1/N of the experts keep their share at any N.
    """
    layers = np.array([layer.expert_marginals for layer in point.layers])
    ranked = -np.sort(-layers / layers.sum(axis=1, keepdims=True), axis=1).mean(axis=0)
    taken = np.concatenate(([0.0], np.cumsum(ranked)))
    edges = np.linspace(0, point.num_experts, num_experts + 1)
    shares = np.diff(np.interp(edges, np.arange(point.num_experts + 1), taken))
    shares = np.maximum(shares, LEAST_SHARE)
    return tuple((shares / shares.sum()).tolist())


def difference(point: LearnedPoint, model: ModelSpec) -> str | None:
    """What the point is carried over, in words; None where experts and top_k are its own."""
    own, others = (point.num_experts, point.top_k), (model.num_experts, model.top_k)
    if own == others:
        return None
    learnt, used = (f"{experts} experts, top-{k}" for experts, k in (own, others))
    verb = "learnt" if point.origin == "learned" else "recorded"
    return f"{point.label} was {verb} on {learnt}; {model.name} has {used}"
