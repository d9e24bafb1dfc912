"""Sharing a time budget among cells that need very different amounts of it."""

from collections.abc import Sequence
from dataclasses import dataclass

from moebench.units import Seconds


@dataclass(frozen=True)
class Need:
    """Wall time that a cell takes."""

    least: Seconds
    """With a single round: less cannot be had."""
    enough: Seconds
    """With as many rounds as a verdict takes; more than `least`."""


def allowance(needs: Sequence[Need], budget: Seconds) -> Seconds:
    """What the first of the cells still to run may spend.

    Every cell gets its least. Of what is left, cheap cells get enough before dear ones, since a
    verdict costs them little; where there is plenty, all get more in proportion to their need. A
    cell that stops early leaves its rest to the next call.

    Args:
        needs: of the cells still to run, in their order.
        budget: left for all of them.
    """
    own = needs[0]
    extra = budget - sum(need.least for need in needs)
    if extra <= 0:
        return own.least
    return own.least + _share([need.enough - need.least for need in needs], extra)


def _share(wants: Sequence[Seconds], budget: Seconds) -> Seconds:
    """The first one's part of a budget that meets wants from the smallest up."""
    own, total = wants[0], sum(wants)
    if total <= budget:
        return own * budget / total
    smaller = sum(want for want in wants if want < own)
    return min(own, max(0.0, budget - smaller))
