"""How a report writes numbers and names: percentages, ratios, intervals, levels, footnote marks."""

from collections.abc import Iterable

from moebench.records.results import Interval, Ratio
from moebench.units import text

DASH = "–"
"""Stands for a number that is missing."""
LEVELS = {"moe": "MoE layer", "decoder": "decoder layer"}


def level_title(level: str) -> str:
    """A level with a capital letter: "MoE layer", "Decoder layer"."""
    return LEVELS[level][0].upper() + LEVELS[level][1:]


def percent(value: float, signed: bool = False) -> str:
    """A share for people: 0.049 is "4.9 %", or "+4.9 %" where the sign matters."""
    sign = "+" if signed else ""
    return f"{100 * value:{sign}.1f} %".replace("-", "−")


def three_digits(value: float) -> str:
    """A positive number with three significant digits: "0.705", "1234", "2.1e-5"."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if value >= 1e-4 else f"{value:.2g}".replace("e-0", "e-")


def ratio_text(value: Ratio) -> str:
    """A ratio with its interval, if it has one: "1.38× [1.34, 1.42]"."""
    if value.low is None or value.high is None:
        return f"{value.value:.2f}×"
    return f"{value.value:.2f}× [{value.low:.2f}, {value.high:.2f}]"


def time_text(interval: Interval) -> str:
    """A time with the larger side of its interval: "60.1 ms ±0.8 %"."""
    value = text(interval.value, "time")
    if interval.low is None or interval.high is None:
        return value
    side = max(interval.high - interval.value, interval.value - interval.low)
    return f"{value} ±{percent(side / interval.value)}"


def superscript(numbers: Iterable[int]) -> str:
    """Footnote marks: [1, 12] is "¹˒¹²"."""
    digits = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
    return "˒".join(str(number).translate(digits) for number in numbers)
