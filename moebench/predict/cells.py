"""Cells of predict's tables: latencies and speedups with their intervals, errors and ranges."""

from collections.abc import Sequence

from moebench.predict.serving.speedup import Speedup
from moebench.predict.traffic import SharedOtherwise, Typical
from moebench.units import Kind, text

BASIS_TITLES = {
    "seen": "seen",
    "rows": "seen",
    "shape": "unseen shape",
    "sibling": "near device",
    "device": "unseen device",
    "relative": "related kernel",
    "stranger": "unknown kernel",
    "maker": "unmeasured maker",
}
NO_INTERVAL = "no interval"

Speedups = Sequence[Speedup]
"""Speedups of one case (a deployment and a router), by batch."""


def typical_cell(skewed: Typical | None) -> str:
    """Change of the latency and the speedup under a typical skew."""
    if skewed is None:
        return "–"
    return f"{100 * skewed.latency_change:+.0f} %, {skewed.speedup:.2f}×"


def independent_cell(alone: SharedOtherwise | None) -> str:
    """Distinct experts, change of the latency and speedup if tokens were independent."""
    if alone is None:
        return "–"
    change = f"{100 * alone.latency_change:+.0f} %"
    return f"{alone.distinct_experts:.1f} experts, {change}, {alone.speedup:.2f}×"


def latency_cell(row: Speedup) -> str:
    """Latency with its interval."""
    step = row.estimate
    if step.latency_low is None:
        return f"{text(step.latency, 'time')}, {NO_INTERVAL}"
    low, high = text(step.latency_low, "time"), text(step.latency_high, "time")
    if low.split()[-1] == high.split()[-1]:
        low = low.split()[0]
    return f"{text(step.latency, 'time')} [{low}, {high}]"


def speedup_cell(row: Speedup) -> str:
    """Speedup with its interval."""
    if row.deployment.is_dense:
        return "–"
    if row.low is None or row.high is None:
        return f"{row.value:.2f}×, {NO_INTERVAL}"
    return f"{row.value:.2f}× [{row.low:.2f}, {row.high:.2f}]"


def errors_cell(low: float | None, high: float | None) -> str:
    """Ends of a calibration's measured error, in percent."""
    if low is None or high is None:
        return "none"
    return f"{100 * low:.0f} to {100 * high:+.0f} %"


def error_range(rows: Speedups) -> str:
    """Measured errors of a case over its batches."""
    lows, highs = zip(*(row.calibration_error for row in rows), strict=True)
    low = None if None in lows else min(lows)
    high = None if None in highs else max(highs)
    basis = rows[0].basis
    return f"{errors_cell(low, high)}, {BASIS_TITLES[basis]}" if basis else "–"


def promise_range(rows: Speedups) -> str:
    """Speedups of a case if time went with FLOPs."""
    if rows[0].deployment.is_dense:
        return "–"
    low, high = (f"{end(row.flops_promise for row in rows):.2f}×" for end in (min, max))
    return low if low == high else f"{low} to {high}"


def range_cell(kind: Kind, values: Sequence[float | None]) -> str:
    """Smallest to largest of some quantities."""
    known = [value for value in values if value is not None]
    low, high = (text(end(known, default=None), kind) for end in (min, max))
    return low if low == high else f"{low} to {high}"
