"""How traffic shares experts: by a skew, a histogram, or distinct experts as counted."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from moebench.files import text_of
from moebench.predict.learned import check_learned
from moebench.predict.options import learned_of
from moebench.predict.serving.deployment import Deployment
from moebench.predict.serving.speedup import Speedup, speedups
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
    point = None if d.is_dense else learned_of(options)
    if point is not None:
        if given:
            raise ValueError(
                f"--{given[0].replace('_', '-')}: not beside {options.operating_point}, which "
                "says how experts are shared"
            )
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
class Typical:
    """What a decode prediction for uniform routing would be under a typical skew."""

    distinct_experts: float
    latency: float
    """Seconds."""
    speedup: float
    latency_change: float
    """Relative to the prediction for uniform routing."""
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
    return tuple(
        Typical(
            own.estimate.distinct_experts,
            own.estimate.latency,
            own.value,
            own.estimate.latency / row.estimate.latency - 1,
        )
        for own, row in zip(skewed, rows, strict=True)
    )
