"""Rules of a verdict: predicted intervals against numbers as printed.

**FLOPs.** Counting gives a range, because the printed k was rounded and a paper may not state its
sample. The claim *holds* if this range overlaps the range of values that round to the printed
number; otherwise it *cannot hold*.

**Speed.** A claim promises at least the printed speedup; a prediction has a 90 % interval at every
batch. At one batch the claim *holds* if it lies inside the interval or below (the prediction does
not exclude it), and holds *surely* if it lies below the whole interval. It *cannot hold* if it lies
above the interval at every batch of both phases. Batches that do not fit into memory do not count.
A claim is *not testable* if the paper states no number or the prediction lacks an input.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from moebench.predict.claims.papers import Rounded

Reach = Literal["surely", "holds", "beyond", "no room"]


@dataclass(frozen=True)
class ClaimVerdict:
    """Decision about a claim, and its reason."""

    answer: Literal["holds", "cannot hold", "not testable"]
    reason: str


def flops_verdict(claimed: Rounded, low: float, high: float, ceiling: float | None) -> ClaimVerdict:
    """Verdict on a printed share of FLOPs saved, where counting gives `low` to `high`.

    `ceiling` is the share saved if routed experts were all FLOPs: no way of counting gives more.
    """
    if claimed.low <= high and low <= claimed.high:
        return ClaimVerdict("holds", "the count agrees")
    if ceiling is not None and claimed.low > ceiling:
        return ClaimVerdict("cannot hold", f"the routed experts alone save {100 * ceiling:.1f} %")
    side = "less" if high < claimed.low else "more"
    return ClaimVerdict("cannot hold", f"the architecture saves {side}")


def reach(claimed: Rounded, low: float, high: float) -> Reach:
    """How far a predicted speedup in [low, high] reaches the claimed one."""
    if claimed.high <= low:
        return "surely"
    return "holds" if claimed.low <= high else "beyond"


def holds(reached: Reach) -> bool:
    """Whether the claim holds; a step that does not fit into memory shows nothing."""
    return reached in ("surely", "holds")


def batches_in_words(batches: Sequence[int], chosen: Sequence[bool]) -> str:
    """Chosen batches as runs of neighbours: "1–4, 1024–4096"; or "none", or "all"."""
    if not any(chosen):
        return "none"
    if all(chosen):
        return "all"
    runs: list[list[int]] = []
    previous = False
    for batch, is_chosen in zip(batches, chosen, strict=True):
        if is_chosen and previous:
            runs[-1].append(batch)
        elif is_chosen:
            runs.append([batch])
        previous = is_chosen
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
