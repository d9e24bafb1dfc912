"""How a verdict is decided, and nothing else: intervals against a number as it was printed.

**FLOPs.** Counting gives a range: the printed k was rounded, and a paper may not say over how many
tokens it counted. The claim *holds* if the range and the printed number, rounded as it is, overlap;
otherwise it *cannot hold*.

**Speed.** A claimed speedup is a promise of at least that much, and a prediction has a 90 %
interval at every batch. The claim *holds* at a batch if it lies inside the interval or below it:
the prediction does not exclude it. It holds *surely* if it lies below all of the interval. It
*cannot hold* if it lies above the interval at every batch of every phase that the paper may mean.
A batch that does not fit into memory counts for nothing. What is not claimed, or cannot be priced,
is *not testable*, with what is missing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from moebench.predict.claims.papers import Rounded

Answer = Literal["holds", "cannot hold", "not testable"]
Reach = Literal["surely", "holds", "beyond", "no room"]


@dataclass(frozen=True)
class Verdict:
    """What can be said of a claim, and why."""

    answer: Answer
    reason: str


def flops_verdict(claimed: Rounded, low: float, high: float, ceiling: float | None) -> Verdict:
    """Whether a printed share of FLOPs is one that counting can give.

    Args:
        claimed: share saved, as printed.
        low: least that counting gives.
        high: most that counting gives.
        ceiling: share saved if the routed experts were all FLOPs; no convention can pass it.
    """
    if claimed.low <= high and low <= claimed.high:
        return Verdict("holds", "the count agrees")
    if ceiling is not None and claimed.low > ceiling:
        return Verdict("cannot hold", f"the routed experts alone save {100 * ceiling:.1f} %")
    side = "less" if high < claimed.low else "more"
    return Verdict("cannot hold", f"the architecture saves {side}")


def reach(claimed: Rounded, low: float, high: float) -> Reach:
    """Whether a predicted speedup in [low, high] reaches a claimed one."""
    if claimed.high <= low:
        return "surely"
    return "holds" if claimed.low <= high else "beyond"


def holds(reached: Reach) -> bool:
    """Whether the claim holds there; a step that does not fit shows nothing."""
    return reached in ("surely", "holds")


def batches_in_words(batches: Sequence[int], kept: Sequence[bool]) -> str:
    """Runs of neighbouring batches: "1–4, 1024–4096"; "none", "all"."""
    if not any(kept):
        return "none"
    if all(kept):
        return "all"
    runs: list[list[int]] = []
    previous = False
    for batch, keep in zip(batches, kept, strict=True):
        if keep and previous:
            runs[-1].append(batch)
        elif keep:
            runs.append([batch])
        previous = keep
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
