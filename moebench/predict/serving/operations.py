"""Which fitted operation a deployment runs: its engine's, in the release that was asked for."""

import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from moebench.predict.arrays import Floats, Ints
from moebench.predict.operations.fits import shipped_operation_fits
from moebench.predict.operations.operation import Calls, Operation, Software
from moebench.predict.operations.price import PricedOperation, priced
from moebench.spec.hardware import HardwareSpec


class Span(NamedTuple):
    """Seconds with the ends of their 90 % interval; arrays over cases."""

    seconds: Floats
    low: Floats
    high: Floats

    def times(self, count: Floats | Ints | float) -> "Span":
        """Span of as many calls, whose errors are the same."""
        return Span(*(np.asarray(count * each) for each in self))

    def and_then(self, other: "Span") -> "Span":
        """One after the other; errors of one engine on one device are taken to be common."""
        return Span(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


def nothing(cases: int) -> Span:
    """No time at all."""
    return Span(*np.zeros((3, cases)))


@dataclass(frozen=True)
class Release:
    """An engine or library, and the release that was asked for."""

    name: str
    version: str | None = None


def operation_of(
    operation: Operation, release: Release, variant: str, hardware: HardwareSpec
) -> PricedOperation:
    """An operation as the release runs it: in the nearest version that was ever fitted.

    That is the newest up to the one asked for, else the oldest; without a wish, the newest. Fits on
    the device itself come before others.
    """
    own = [
        fit
        for fit in shipped_operation_fits(operation)
        if (fit.software.name, fit.software.variant) == (release.name, variant)
    ]
    here = [fit for fit in own if fit.system == hardware.name] or own
    versions = sorted({fit.software.version for fit in here}, key=_numbers)
    if release.version is not None:
        asked = _numbers(release.version)
        versions = [one for one in versions if _numbers(one) <= asked] or versions[:1]
    version = versions[-1] if versions else release.version or ""
    return priced(operation, Software(release.name, version, variant), hardware)


def span_of(operation: PricedOperation, calls: Calls) -> Span:
    """Seconds of calls with their interval; weights and cache come from DRAM."""
    seconds = operation.seconds(calls)
    return Span(seconds, *operation.interval(seconds))


def _numbers(version: str) -> tuple[int, ...]:
    """A version as numbers: "1.3.0rc20" is (1, 3, 0, 20)."""
    return tuple(map(int, re.findall(r"\d+", version)))
