"""Findings about a machine and the rates of a selftest, as text for people and as Markdown."""

from collections.abc import Iterator, Sequence

from moebench.doctor.experiments import BANDS, EXPERIMENTS, Rate, UnitRates
from moebench.doctor.record import Circumstances
from moebench.doctor.selftest import Selftest
from moebench.doctor.timed_units import FEW_ROUNDS, MANY_ROUNDS
from moebench.measure.preflight import Finding
from moebench.report.document import Grid, Paragraph, markdown
from moebench.terminal import text_table
from moebench.units import text

SIGN = {"bad": "BAD ", "unknown": "?   ", "good": "ok  "}
TITLES = {
    "aa_rate": "A/A false positives",
    "power_2": f"sees 2 % in {MANY_ROUNDS} rounds",
    "power_5": f"sees 5 % in {FEW_ROUNDS} rounds",
    "coverage": "coverage of 95 %",
}
"""Names of the required rates in tables."""
UNITS = ("1 ms", "1 ms, 3 % drift", "100 ms", "100 ms, 3 % drift")
"""Columns of the tables."""


def findings_text(findings: Sequence[Finding]) -> str:
    """The findings in lines, what is bad first."""
    lines = []
    for finding in sorted(findings, key=lambda finding: [*SIGN].index(finding.status)):
        lines.append(f"{SIGN[finding.status]} {finding.name}: {finding.seen}")
        lines += [f"       {finding.meaning}"] * bool(finding.meaning)
        lines += [f"       → {finding.remedy}"] * bool(finding.remedy)
    return "\n".join(lines)


def rates_by_unit(result: Selftest) -> tuple[UnitRates, ...]:
    """The rates in the order of `UNITS`."""
    return result.quick, result.quick_drift, result.slow, result.slow_drift


def rate_text(rate: Rate) -> str:
    """A rate with its exact interval; none of fewer experiments than a rate takes."""
    if rate.value is None or rate.low is None or rate.high is None or rate.n < EXPERIMENTS:
        return f"not resolved ({rate.n} trial{'s' * (rate.n != 1)})"
    return f"{100 * rate.value:.1f} % [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"


def rate_rows(result: Selftest) -> Iterator[tuple[str, ...]]:
    """A row for each required rate: its name, its value on each unit, what is required."""
    for key, title in TITLES.items():
        low, high = BANDS[key]
        values = (rate_text(getattr(unit, key)) for unit in rates_by_unit(result))
        yield title, *values, f"{low:.0%} to {high:.0%}"


def rounds_rows(result: Selftest) -> Iterator[tuple[str, ...]]:
    """A row for each planted slowdown: the rounds that show it as often as required."""
    for key, share, rounds in (("2", 80, MANY_ROUNDS), ("5", 95, FEW_ROUNDS)):
        numbers = (getattr(unit, f"rounds_{key}") for unit in rates_by_unit(result))
        shown = ("not known" if number is None else str(number) for number in numbers)
        yield f"rounds that show {key} % to {share} %", *shown, f"at most {rounds}"


def width_row(result: Selftest) -> tuple[str, ...]:
    """The half width of the interval of a case against itself, on each unit."""
    widths = (f"±{100 * unit.half_width:.1f} %" for unit in rates_by_unit(result))
    return f"A/A interval after {FEW_ROUNDS} rounds", *widths, ""


def real_work_text(result: Selftest) -> str:
    """Real extra work as planted and as measured; empty for older records."""
    shown = [
        f"{real.planted - 1:.1%} measured as {real.measured.value - 1:.1%} "
        f"[{(real.measured.low or 0) - 1:.1%}, {(real.measured.high or 0) - 1:.1%}]"
        for real in result.real_work
    ]
    return f"real extra work on the 1 ms unit: {', '.join(shown)}" if shown else ""


def selftest_table(result: Selftest, where: Circumstances) -> str:
    """The rates in Markdown, as the README quotes them, and what they rest on."""
    rows = [*rate_rows(result), *rounds_rows(result), width_row(result)]
    real = real_work_text(result)
    note = f"Exact 95 % intervals in brackets. {real[:1].upper()}{real[1:]}{'. ' if real else ''}"
    head = ("unit of work", *UNITS, "required")
    paragraph = Paragraph(f"{note}{where}; {result.duration:.0f} s.")
    return markdown((Grid(head, rows, (0, len(UNITS) + 1)), paragraph))


def selftest_text(result: Selftest) -> str:
    """The rates for people, as a table and lines below it."""
    each = rates_by_unit(result)
    rows = [
        *rate_rows(result),
        *rounds_rows(result),
        ("independent experiments", *(str(unit.aa_rate.n) for unit in each), ""),
        ("rounds of an A/A cell", *(f"{unit.mean_rounds:.0f}" for unit in each), ""),
        width_row(result),
    ]
    lines = [
        text_table(("", *UNITS, "required"), rows),
        "",
        real_work_text(result),
        f"noise floor: ±{result.noise_floor:.2%}; {result.duration:.0f} s",
        f"{result.rounds} rounds of {text(result.visit, 'time')} visits to a unit of "
        f"{text(result.unit, 'time')}, {result.slow_rounds} rounds of one of "
        f"{text(result.slow_unit, 'time')}",
        *(f"MISSED: {what}" for what in result.missed),
        *(f"not resolved: {what}" for what in result.undecided),
    ]
    return "\n".join(lines)
