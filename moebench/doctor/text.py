"""Findings about a machine and the rates of a selftest, as text for people and as Markdown."""

from collections.abc import Mapping, Sequence

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


def findings_text(findings: Sequence[Finding]) -> str:
    """The findings in lines, what is bad first."""
    lines = []
    for status, sign in SIGN.items():
        for finding in findings:
            if finding.status == status:
                lines.append(f"{sign} {finding.name}: {finding.seen}")
                lines += [f"       {finding.meaning}"] * bool(finding.meaning)
                lines += [f"       → {finding.remedy}"] * bool(finding.remedy)
    return "\n".join(lines)


def rates_by_unit(result: Selftest) -> dict[str, UnitRates]:
    """The rates under the names of their units of work: the columns of a table."""
    return {
        "1 ms": result.quick,
        "1 ms, 3 % drift": result.quick_drift,
        "100 ms": result.slow,
        "100 ms, 3 % drift": result.slow_drift,
    }


def rate_text(rate: Rate) -> str:
    """A rate with its exact interval."""
    return f"{100 * rate.value:.1f} % [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"


def rate_rows(units: Mapping[str, UnitRates]) -> list[tuple[str, ...]]:
    """A row for each required rate: its name, its value on each unit, what is required."""
    return [
        (
            title,
            *(rate_text(getattr(unit, key)) for unit in units.values()),
            f"{BANDS[key][0]:.0%} to {BANDS[key][1]:.0%}",
        )
        for key, title in TITLES.items()
    ]


def selftest_table(result: Selftest, where: Circumstances) -> str:
    """The rates in Markdown, as the README quotes them, and what they rest on."""
    units = rates_by_unit(result)
    widths = [f"±{100 * unit.half_width:.1f} %" for unit in units.values()]
    rows = [*rate_rows(units), (f"A/A interval after {FEW_ROUNDS} rounds", *widths, "")]
    note = (
        f"Exact 95 % intervals in brackets. Real extra work on the 1 ms unit: 2 % seen in "
        f"{rate_text(result.real_power_2)}, 5 % in {rate_text(result.real_power_5)} of "
        f"experiments. {where}; {result.duration:.0f} s."
    )
    head = ("unit of work", *units, "required")
    return markdown((Grid(head, rows, (0, len(units) + 1)), Paragraph(note)))


def selftest_text(result: Selftest) -> str:
    """The rates for people, as a table and lines below it."""
    units = rates_by_unit(result)
    each = units.values()
    rows = [
        *rate_rows(units),
        ("independent experiments", *(str(unit.aa_rate.n) for unit in each), ""),
        ("rounds of an A/A cell", *(f"{unit.mean_rounds:.0f}" for unit in each), ""),
        (f"half width, {FEW_ROUNDS} rounds", *(f"±{unit.half_width:.2%}" for unit in each), ""),
    ]
    lines = [
        text_table(("", *units, "required"), rows),
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
