"""How traffic shares experts: by a skew, a histogram, or distinct experts as counted."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from moebench.files import text_of
from moebench.predict.learned import check_learned
from moebench.predict.options import points_of
from moebench.predict.serving.deployment import Deployment
from moebench.predict.serving.speedup import Speedup, speedups
from moebench.predict.traced import with_traces
from moebench.routers.policy import Policy, policy
from moebench.spec.carried_point import carried_shares
from moebench.spec.case import OperatingPoint
from moebench.spec.load import TYPICAL_SKEW, skew_of_distinct

NAMES = ("skew", "distinct_experts", "expert_shares")


def with_traffic(
    deployment: Deployment, options: argparse.Namespace, batches: Sequence[int]
) -> Deployment:
    """A deployment whose experts are shared as the command line says; one way at most."""
    d = deployment
    given = [name for name in NAMES if getattr(options, name)]
    points = points_of(options) if options.trace or not d.is_dense else ()
    if points and given:
        raise ValueError(
            f"--{given[0].replace('_', '-')}: not beside {points[0].label}, which says how experts "
            "are shared"
        )
    if options.trace:
        return with_traces(d, options)
    for point in points:
        names = [policy(name).name for name in options.router]
        check_learned(point, names, d.model, is_strict=options.strict)
        shares = carried_shares(point, d.model.num_experts)
        return replace(d, expert_shares=shares, traffic=f"shares of {point.label}")
    if len(given) > 1:
        first, second = (f"--{name.replace('_', '-')}" for name in given[:2])
        raise ValueError(f"{second}: not beside {first}, which says the same")
    if options.expert_shares is not None:
        shares = read_shares(options.expert_shares)
        return replace(d, expert_shares=shares, traffic=f"shares of {options.expert_shares.name}")
    if options.distinct_experts is None:
        return d
    if len(batches) > 1:
        raise ValueError(
            f"--distinct-experts: found {len(batches)} batches, expected one --batch: the one at "
            "which they were counted"
        )
    tokens, m = d.workload(batches[0]).num_tokens, d.model
    distinct = options.distinct_experts
    try:
        chances, _ = policy("top-k").k_distribution(m)
        skew = skew_of_distinct(distinct, tokens, m.num_experts, chances)
    except ValueError as error:
        raise ValueError(f"--distinct-experts: {error}") from error
    traffic = f"top-k touches {distinct:g} of {m.num_experts} as counted"
    return replace(
        d, skew=skew, traffic=f"{traffic}, the power law of exponent {skew:.2f} that does"
    )


def read_shares(path: Path) -> tuple[float, ...]:
    """Shares of the experts from a file: a line a layer, its experts' assignments by commas.

    The experts of several layers have nothing to do with one another, so that layers are averaged
    over the ranks of their experts, the busiest first.
    """
    try:
        lines = text_of(path).replace(",", " ").splitlines()
    except ValueError as error:
        raise ValueError(f"--expert-shares: {error}") from error
    layers = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            layers.append([float(word) for word in line.split()])
        except ValueError:
            layers.append([-1.0])
        counts = layers[-1]
        if not (min(counts) >= 0 and 0 < sum(counts) < np.inf):
            raise ValueError(
                f"--expert-shares: {path}: line {number}: found {line.strip()!r:.40}, expected the "
                "assignments of each expert of a layer: 120, 80, 100, ..."
            )
        if len(counts) != len(layers[0]):
            raise ValueError(
                f"--expert-shares: {path}: line {number}: found {len(counts)} experts, expected "
                f"{len(layers[0])} as in the first line"
            )
    if not layers:
        raise ValueError(f"--expert-shares: {path}: found no numbers, expected a line a layer")
    shares = np.array([np.divide(counts, sum(counts)) for counts in layers])
    if len(shares) > 1:
        shares = -np.sort(-shares, axis=1)
    return tuple(shares.mean(axis=0).tolist())


@dataclass(frozen=True)
class SharedOtherwise:
    """What a prediction would be if tokens shared experts otherwise."""

    distinct_experts: float
    latency: float
    """Seconds."""
    speedup: float
    latency_change: float
    """Relative to the prediction."""


@dataclass(frozen=True)
class Typical(SharedOtherwise):
    """What a decode prediction for uniform routing would be under a typical skew."""

    skew: float = TYPICAL_SKEW


def under_typical_skew(
    rows: Sequence[Speedup], router: Policy, point: OperatingPoint
) -> tuple[Typical | None, ...]:
    """Each row's latency and speedup if experts were shared as in real text.

    None where a user said how they are shared, and outside decode, whose steps touch most experts.
    """
    d = rows[0].deployment
    if d.is_dense or d.phase != "decode" or d.skew or d.expert_shares or point.skew:
        return (None,) * len(rows)
    skewed = speedups(
        replace(d, skew=TYPICAL_SKEW),
        router,
        [row.batch for row in rows],
        replace(point, skew=TYPICAL_SKEW),
    )
    return tuple(Typical(*_compared(own, row)) for own, row in zip(skewed, rows, strict=True))


def under_independence(
    rows: Sequence[Speedup], router: Policy, point: OperatingPoint
) -> tuple[SharedOtherwise | None, ...]:
    """Each row's prediction if the recorded tokens were independent; None without a trace."""
    d = rows[0].deployment
    if d.recorded is None:
        return (None,) * len(rows)
    alone = replace(d, recorded=replace(d.recorded, is_independent=True))
    found = speedups(alone, router, [row.batch for row in rows], point)
    return tuple(
        SharedOtherwise(*_compared(own, row)) for own, row in zip(found, rows, strict=True)
    )


def _compared(own: Speedup, row: Speedup) -> tuple[float, float, float, float]:
    """Distinct experts, latency, speedup and change of the latency of one row beside another."""
    step = own.estimate
    return step.distinct_experts, step.latency, own.value, step.latency / row.estimate.latency - 1
