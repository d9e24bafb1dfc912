"""A comparison of two runs as a table for people."""

from moebench.compare.runs import Comparison
from moebench.terminal import text_table
from moebench.units import printable


def comparison_text(found: Comparison) -> str:
    """The table of a comparison for people."""
    rows = []
    for change in found.changes:
        limits = "–" if change.low is None else f"[{change.low:.3f}, {change.high:.3f}]"
        margin = f" within {found.threshold:.0%}" if change.verdict == "same" else ""
        verdict = change.verdict + margin
        verdict += "  REGRESSION" if change.is_regression else ""
        rows.append((change.case, f"{change.value:.3f}", limits, f"{change.plain:.3f}", verdict))
    titles = ("time of B over A", "ratio", "95 %", "undivided", "verdict")
    lines = [f"A: {found.run_a}", f"B: {found.run_b}", ""]
    lines += text_table(titles, rows, left=(0, 4)).split("\n")
    lines += ["", *(f"note: {label}" for label in found.labels)]
    if (deviation := found.deviation_between_runs) is not None:
        lines.append(f"deviation between runs of unchanged code: {deviation:.1%}")
    if found.missing:
        lines.append(f"only in one run: {', '.join(found.missing)}")
    lines.append(
        f"{len(found.regressions)} of {len(found.changes)} cases slower by more than "
        f"{found.threshold:.0%}"
    )
    return "\n".join(map(printable, lines))
