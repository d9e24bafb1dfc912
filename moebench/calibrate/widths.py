"""Widths of intervals from errors on rows that a fit had not used.

Rows of one device err together, so errors on unseen devices count by device, not by row.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from moebench.calibrate.rows import Measured
from moebench.predict.arrays import Floats
from moebench.predict.kernels.intervals import (
    BASES,
    RATIO_STEP,
    REGIME_NAMES,
    REGIMES,
    UNSEEN,
    Basis,
    Bounds,
    Widths,
)

SIBLING_SHARE = 0.25
"""No two devices of the development tables have one compute capability, so a sibling's widths
are assumed: this far on the way from an unseen shape's to an unseen device's."""
LEVEL = 0.90
LEAST_APART = 0.05
"""Logarithm of two loads' ratio below which their errors do not tell how errors part."""
LEAST_ROWS = 60
"""Residuals below which a family's own quantiles are not trusted and all families' are used."""


@dataclass(frozen=True)
class Residuals:
    """Errors of one group under one basis."""

    basis: Basis | None
    """None: no interval rests on these errors."""
    family: str
    system: str
    """Hardware name."""
    num_tokens: Floats
    log_error: Floats
    """log(measured / predicted)."""
    is_parallel: bool = False
    """Ratios under expert parallelism, where the load of the fullest rank is one draw of many."""

    @classmethod
    def of(cls, basis: Basis | None, rows: Measured, log_error: Floats) -> "Residuals":
        """Errors on measured rows of one kernel on one device."""
        return cls(basis, rows.kernel.family, rows.hardware.name, rows.cases.num_tokens, log_error)


def bounds_of(residuals: Iterable[Residuals]) -> Bounds:
    """Quantiles of pooled residuals in each regime; zero is always inside."""
    found = list(residuals)
    tokens = np.concatenate([one.num_tokens for one in found])
    errors = np.concatenate([one.log_error for one in found])
    bounds = {}
    for name, (low, high) in zip(REGIME_NAMES, REGIMES, strict=True):
        here = errors[(tokens > low) & (tokens <= high)]
        ends = np.quantile(here if len(here) else errors, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        bounds[name] = (float(min(ends[0], -0.002)), float(max(ends[1], 0.002)))
    return bounds


def calibrate_widths(rows: Sequence[Residuals], ratios: Sequence[Residuals]) -> Widths:
    """Quantiles for every basis and family that has enough residuals."""
    by_basis: dict[str, dict[str, Bounds]] = {}
    for basis in BASES:
        if basis == "sibling" or basis in UNSEEN:
            continue
        members = [one for one in rows if one.basis == basis]
        table = {"any": bounds_of(members)}
        for family in sorted({one.family for one in members}):
            own = [one for one in members if one.family == family]
            if sum(len(one.log_error) for one in own) >= LEAST_ROWS:
                table[family] = bounds_of(own)
        by_basis[basis] = table
    by_basis |= {basis: {"any": bounds} for basis, bounds in unseen_bounds(rows).items()}
    alone, parallel = (
        _ratio_bounds([one for one in ratios if one.is_parallel == is_parallel])
        for is_parallel in (False, True)
    )
    by_basis["sibling"] = {
        family: _towards(bounds, by_basis["device"]["any"])
        for family, bounds in by_basis["shape"].items()
    }
    return Widths(by_basis, alone, parallel)


def batch_ratios(one: Residuals, rows: Measured) -> list[Residuals]:
    """Errors of the ratio of two neighbouring batches of a layer, as those of two top-k.

    Tables of latencies have many devices and kernels, of which no top-k pairs were measured. Two
    batches whose loads are some factor apart err as two top-k do that are as far apart; errors grow
    with the root of the distance of the logarithms, here brought to `RATIO_STEP`.
    """
    cases = rows.cases
    keys = zip(
        rows.shapes.tolist(), rows.routing.tolist(), cases.inner_size, cases.expert_parallel,
        strict=True,
    )  # fmt: skip
    layers: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        if rows.works[index]:
            layers[key].append(index)
    pairs = [
        pair
        for members in layers.values()
        for pair in pairwise(sorted(members, key=lambda index: cases.num_tokens[index]))
    ]
    few, many = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    apart = np.log(cases.loads.copies[many] / np.maximum(cases.loads.copies[few], 1e-9))
    use = apart > LEAST_APART
    few, many, apart = few[use], many[use], apart[use]
    error = (one.log_error[many] - one.log_error[few]) * np.sqrt(RATIO_STEP / apart)
    found = []
    for is_parallel in (False, True):
        here = rows.is_parallel[many] == is_parallel
        tokens, own = cases.num_tokens[many][here], error[here]
        found.append(
            Residuals(one.basis, one.family, one.system, tokens, own, is_parallel=is_parallel)
        )
    return found


def _ratio_bounds(ratios: Sequence[Residuals]) -> dict[str, Bounds]:
    """Bounds of ratios by basis, each of the groups of residuals being as wide as it needs."""
    found: dict[str, Bounds] = {}
    for basis in BASES:
        if basis != "sibling" and basis not in UNSEEN:
            found[basis] = bounds_of(one for one in ratios if one.basis == basis)
    found |= {str(basis): bounds for basis, bounds in unseen_bounds(ratios).items()}
    return found | {"sibling": _towards(found["shape"], found["device"])}


def unseen_bounds(rows: Sequence[Residuals]) -> dict[Basis, Bounds]:
    """Bounds of predictions for devices without a row of the kernel.

    Rows of one device err together, so what counts is the number of devices, not of rows: bounds
    are as wide as the device with the largest errors needs for 90 % of its rows. They are
    symmetrical: whether the next device is faster or slower than its spec sheet says is not
    known. Knowing less is never narrower.
    """
    found: dict[Basis, Bounds] = {}
    before: Bounds = dict.fromkeys(REGIME_NAMES, (-0.002, 0.002))
    for basis in UNSEEN:
        members = [one for one in rows if one.basis == basis]
        for system in sorted({one.system for one in members}):
            own = bounds_of(
                Residuals(basis, one.family, system, one.num_tokens, sign * np.abs(one.log_error))
                for one in members
                for sign in (-1, 1)
                if one.system == system
            )
            before = {
                name: (min(low, own[name][0]), max(high, own[name][1]))
                for name, (low, high) in before.items()
            }
        found[basis] = before
    return found


def _towards(one: Bounds, other: Bounds) -> Bounds:
    """Bounds `SIBLING_SHARE` of the way from one to the other."""
    return {
        name: (
            low + SIBLING_SHARE * (other[name][0] - low),
            high + SIBLING_SHARE * (other[name][1] - high),
        )
        for name, (low, high) in one.items()
    }
