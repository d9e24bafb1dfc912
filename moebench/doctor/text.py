"""Findings about a machine and the rates of a selftest, as text for people and as Markdown."""

from collections.abc import Iterator, Sequence

from moebench.doctor.record import Circumstances
from moebench.doctor.selftest import BANDS, Rate, Selftest, UnitRates
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
    """A rate with its exact interval."""
    return f"{100 * rate.value:.1f} % [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"


def rate_rows(result: Selftest) -> Iterator[tuple[str, ...]]:
    """A row for each required rate: its name, its value on each unit, what is required."""
    for key, title in TITLES.items():
        low, high = BANDS[key]
        values = (rate_text(getattr(unit, key)) for unit in rates_by_unit(result))
        yield title, *values, f"{low:.0%} to {high:.0%}"


def selftest_table(result: Selftest, where: Circumstances) -> str:
    """The rates in Markdown, as the README quotes them, and what they rest on."""
    widths = [f"±{100 * unit.half_width:.1f} %" for unit in rates_by_unit(result)]
    rows = [*rate_rows(result), (f"A/A interval after {FEW_ROUNDS} rounds", *widths, "")]
    note = (
        f"Exact 95 % intervals in brackets. Real extra work on the 1 ms unit: 2 % seen in "
        f"{rate_text(result.real_power_2)}, 5 % in {rate_text(result.real_power_5)} of "
        f"experiments. {where}; {result.duration:.0f} s."
    )
    head = ("unit of work", *UNITS, "required")
    return markdown((Grid(head, rows, (0, len(UNITS) + 1)), Paragraph(note)))


def selftest_text(result: Selftest) -> str:
    """The rates for people, as a table and lines below it."""
    each = rates_by_unit(result)
    rows = [
        *rate_rows(result),
        ("independent experiments", *(str(unit.aa_rate.n) for unit in each), ""),
        ("rounds of an A/A cell", *(f"{unit.mean_rounds:.0f}" for unit in each), ""),
        (f"half width, {FEW_ROUNDS} rounds", *(f"±{unit.half_width:.2%}" for unit in each), ""),
    ]
    lines = [
        text_table(("", *UNITS, "required"), rows),
        "",
        f"real extra work on the 1 ms unit: 2 % seen in {rate_text(result.real_power_2)}, "
        f"5 % in {rate_text(result.real_power_5)} of {result.real_power_2.n} and "
        f"{result.real_power_5.n} experiments",
        f"noise floor: ±{result.noise_floor:.2%}; {result.duration:.0f} s",
        f"{result.rounds} rounds of {text(result.visit, 'time')} visits to a unit of "
        f"{text(result.unit, 'time')}, {result.slow_rounds} rounds of one of "
        f"{text(result.slow_unit, 'time')}",
        *(f"MISSED: {what}" for what in result.missed),
        *(f"too few experiments to judge: {what}" for what in result.undecided),
    ]
    return "\n".join(lines)
