"""Rules of a verdict: predicted intervals against numbers as printed; in words, `text.HOW`."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from moebench.predict.claims.papers import Rounded

Reach = Literal["surely", "holds", "beyond", "no room"]
SOLVED = 2000
"""Batches among which those that fit a claim are looked for, on a logarithmic scale."""


@dataclass(frozen=True)
class ClaimVerdict:
    """Decision about a claim, and its reason."""

    answer: Literal["holds", "cannot hold", "not testable"]
    reason: str


def flops_verdict(claimed: Rounded, low: float, high: float, ceiling: float | None) -> ClaimVerdict:
    """Verdict on a claimed share of FLOPs; counting gives `low` to `high`, at most `ceiling`."""
    if claimed.low <= high and low <= claimed.high:
        return ClaimVerdict("holds", "the count agrees")
    if ceiling is not None and claimed.low > ceiling:
        return ClaimVerdict("cannot hold", f"the routed experts alone save {100 * ceiling:.1f} %")
    side = "less" if high < claimed.low else "more"
    return ClaimVerdict("cannot hold", f"the architecture saves {side}")


def hours_verdict(claimed: Rounded, low: float, high: float) -> ClaimVerdict:
    """Verdict on hours that a training took, which are predicted to be `low` to `high`."""
    if claimed.high < low:
        return ClaimVerdict("cannot hold", f"it takes {low:.2f} h at the least")
    surely = "surely, " if claimed.low >= high else ""
    most, least = claimed.value / low, claimed.value / high
    return ClaimVerdict("holds", f"{surely}{least:.1f} to {most:.0f} times the predicted hours")


def reach(claimed: Rounded, low: float, high: float) -> Reach:
    """How far a predicted speedup in [low, high] reaches the claimed one."""
    if claimed.high <= low:
        return "surely"
    return "holds" if claimed.low <= high else "beyond"


def holds(reached: Reach) -> bool:
    """Whether the claim holds; a step that does not fit into memory shows nothing."""
    return reached in ("surely", "holds")


def fitting_batches(
    claimed: Rounded, batches: Sequence[int], low: Sequence[float], high: Sequence[float]
) -> tuple[tuple[int, int], ...]:
    """Ranges of the batches at which the interval [low, high] holds the claimed speedup itself.

    Between the batches, the ends of the interval go straight over the logarithm of the batch.
    """
    grid = np.unique(np.round(np.geomspace(batches[0], batches[-1], SOLVED)).astype(int))
    logs = np.log(batches)
    ends = [np.interp(np.log(grid), logs, end) for end in (low, high)]
    inside = (ends[0] <= claimed.high) & (claimed.low <= ends[1])
    edges = np.flatnonzero(np.diff(np.concatenate([[False], inside, [False]])))
    return tuple(
        (int(grid[first]), int(grid[end - 1])) for first, end in edges.reshape(-1, 2).tolist()
    )


def ranges_in_words(ranges: Sequence[tuple[int, int]]) -> str:
    """Ranges of batches in words: "2 to 6, 40"; "none" if there is no range."""
    return ", ".join(f"{a} to {b}" if b > a else str(a) for a, b in ranges) or "none"


def batches_in_words(batches: Sequence[int], chosen: Sequence[bool]) -> str:
    """Chosen batches as runs of neighbours: "1–4, 1024–4096"; or "none", or "all"."""
    if len(set(chosen)) == 1:
        return "all" if chosen[0] else "none"
    pairs = itertools.groupby(zip(chosen, batches, strict=True), key=lambda pair: pair[0])
    runs = [[batch for _, batch in run] for is_chosen, run in pairs if is_chosen]
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
