"""The table of a pareto run: a row each router and operating point, in groups of a router.

Measured and predicted numbers have columns of their own. A number that is missing is a dash whose
footnote says why.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from moebench.records.pareto_run import LatencyCell
from moebench.records.quality import SignedInterval
from moebench.report.notation import DASH, percent
from moebench.report.pareto.entries import Entry, PredictedCase, families
from moebench.report.table import (
    Column,
    Note,
    ReportTable,
    RowCells,
    TableCell,
    TableSection,
    with_marks,
)
from moebench.units import text

FIRST = (
    Column("router", "router", is_text=True),
    Column("seeds", "seeds"),
    Column("mean_k", "mean k"),
    Column("saved", "assignments saved"),
    Column("loss", "test loss (nats/byte)"),
    Column("over_base", "less the base's (95 %)"),
)
LAST = (
    Column("flops", "FLOP per token"),
    Column("tokens", "tokens trained"),
    Column("training_flops", "training FLOP"),
    Column("seconds", "training time"),
    Column("joules", "training energy"),
)
PREDICTED = "predicted time"
LEGEND = (
    "mean k: routed experts a token and layer on the test windows. less the base's: the test loss "
    "less that of the base on the same windows, with its 95 % interval over windows and, where "
    "there are several, over seeds; the base has one seed, so that it holds for this base. "
    "measured time: that of a step over the base's in the same rounds, with its 95 % interval; "
    "below 1 is faster. predicted time: computed for a machine that nothing was measured on. "
    "tokens trained: after the base, by each seed; training FLOP, time and energy: summed over "
    "seeds; energy: gross."
)


def pareto_table(entries: Sequence[Entry], starts: tuple[str, ...] = ("",)) -> ReportTable:
    """The table of all entries; the base comes first.

    Args:
        starts: Starts of the keys of the columns that are shown.
    """
    cells = list(dict.fromkeys(c for e in entries for c in (*e.latency_ratios, *e.latency_missing)))
    cases = predicted_cases(entries)
    columns = (
        *FIRST,
        *(Column(_measured(cell), f"measured time, {cell.title}") for cell in cells),
        *(Column(_predicted(case), f"{PREDICTED} {case.model}, {_where(case)}") for case in cases),
        *LAST,
    )
    groups = [("base", [entry for entry in entries if entry.is_base])]
    for name in families(entries):
        groups.append((name, [e for e in entries if e.family == name and not e.is_base]))
    sections = [
        TableSection("quality", name, "", tuple(_row(entry, cells, cases) for entry in own))
        for name, own in groups
        if own
    ]
    chosen = [column for column in columns if column.key.startswith(starts)]
    return with_marks(chosen, [_only(section, chosen) for section in sections])


def _only(section: TableSection, columns: Sequence[Column]) -> TableSection:
    """A section with the cells of some columns."""
    rows = tuple({column.key: row[column.key] for column in columns} for row in section.rows)
    return replace(section, rows=rows)


def _row(entry: Entry, cells: Sequence[LatencyCell], cases: Sequence[PredictedCase]) -> RowCells:
    quality = entry.quality
    remarks = tuple(Note(note, note) for note in entry.notes)
    row = {
        "router": TableCell(entry.title, remarks),
        "seeds": TableCell(str(len(quality.test.spread.seeds))),
        "mean_k": TableCell(f"{entry.mean_k:.3f}"),
        "saved": TableCell(percent(entry.saved)),
        "loss": TableCell(f"{quality.test.nats_per_byte.value:.4f}"),
        "over_base": _difference(entry.over_base, quality.test.over_base_missing),
        "flops": _number(entry.flops_per_token, entry.flops_missing, _count),
        "tokens": TableCell(_count(quality.router_tokens)),
        "training_flops": _number(entry.training_flops, entry.training_flops_missing, _count),
        "seconds": _number(
            entry.training_seconds, entry.seconds_missing, lambda v: text(v, "time")
        ),
        "joules": _number(entry.training_joules, entry.joules_missing, lambda v: text(v, "energy")),
    }
    for cell in cells:
        reason = entry.latency_missing.get(cell)
        row[_measured(cell)] = _times(entry.latency_ratios.get(cell), reason)
    for case in cases:
        row[_predicted(case)] = predicted_cell(entry, case)
    return row


def predicted_cases(entries: Sequence[Entry]) -> list[PredictedCase]:
    """Every case of which an entry has a predicted time, or a reason for none."""
    each = (case for e in entries for case in (*e.predicted_ratios, *e.predicted_missing))
    return list(dict.fromkeys(each))


def predicted_cell(entry: Entry, case: PredictedCase) -> TableCell:
    """The predicted ratio of a case, or a dash with its reason."""
    ratio, reason = entry.predicted_ratios.get(case), entry.predicted_missing.get(case)
    cell = _number(ratio, reason, lambda value: f"{value:.2f}×")
    caveats = entry.predicted_caveats.get(case, ()) if ratio is not None else ()
    # Caveats that differ in their figures alone share a footnote.
    notes = (Note(caveat.split(":")[0], caveat) for caveat in caveats)
    return replace(cell, notes=(*cell.notes, *notes))


def _measured(cell: LatencyCell) -> str:
    return f"measured {cell.phase} {cell.batch} {cell.length}"


def _predicted(case: PredictedCase) -> str:
    return f"predicted {case.model} {_where(case)}"


def _where(case: PredictedCase) -> str:
    return f"{case.hardware}, batch {case.batch}"


def _count(value: float) -> str:
    return text(value, "count")


def _number(value: float | None, missing: str | None, shown: Callable[[float], str]) -> TableCell:
    """A number, or a dash whose note is the reason."""
    if value is not None:
        return TableCell(shown(value))
    reason = missing or "not measured"
    return TableCell(DASH, (Note(reason, reason),))


def _difference(difference: SignedInterval | None, missing: str | None) -> TableCell:
    if difference is None:
        return _number(None, missing, str)
    return TableCell(difference_text(difference), _interval_notes(difference))


def _times(ratio: SignedInterval | None, missing: str | None) -> TableCell:
    if ratio is None:
        return _number(None, missing, str)
    if ratio.low is None or ratio.high is None:
        return TableCell(f"{ratio.value:.2f}×", _interval_notes(ratio))
    return TableCell(f"{ratio.value:.2f}× [{ratio.low:.2f}, {ratio.high:.2f}]")


def _interval_notes(interval: SignedInterval) -> tuple[Note, ...]:
    """Why an interval is missing."""
    return (Note(interval.missing, interval.missing),) if interval.missing else ()


def difference_text(difference: SignedInterval) -> str:
    """A difference with its interval: "+0.0021 [+0.0009, +0.0033]"."""
    shown = f"{difference.value:+.4f}"
    if difference.low is not None and difference.high is not None:
        shown += f" [{difference.low:+.4f}, {difference.high:+.4f}]"
    return shown.replace("-", "−")
