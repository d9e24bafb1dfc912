"""The sections of a run's report in reading order, as blocks of a document."""

from collections.abc import Iterable, Sequence
from itertools import groupby

from moebench.compare.prediction_errors import prediction_errors
from moebench.records.record import Record
from moebench.records.run import Run
from moebench.report.cases import LEGEND, ratio, run_table, titles_of
from moebench.report.conditions import flat_facts, limits, run_facts, status
from moebench.report.document import (
    Block,
    Bullets,
    Command,
    Grid,
    Heading,
    Paragraph,
    Picture,
    facts_grid,
    listed,
)
from moebench.report.host import warnings
from moebench.report.notation import DASH, LEVELS, level_title, percent, ratio_text
from moebench.report.summary import summary
from moebench.report.table import ReportTable


def report_blocks(
    run: Run, pictures: Sequence[Picture], missing: Sequence[str]
) -> tuple[Block, ...]:
    """The report in reading order; `missing` says which figures could not be drawn, and why."""
    m = run.manifest
    failures = [f"{f.case}: {f.kind}: {f.message}" for f in run.failures]
    calibration = {key: fact for key, fact in m.calibration.items() if key != "doubts"}
    return (
        Heading(m.title, 1),
        Paragraph(f"{m.machine} · {m.dtype} · suite {m.suite} · run {m.run} · {status(run)}"),
        *map(Paragraph, summary(run)),
        *(Paragraph(f"⚠ {warning}") for warning in warnings(run)),
        *pictures[:1],
        *_results(run_table(run)),
        Heading("Figures"),
        *pictures[1:],
        *([Bullets(missing)] if missing else []),
        *_overheads(run.records),
        *_errors(run.records),
        *_flops(run.records),
        *listed("Cases that gave no number", failures),
        *listed("What is wrong with the files of this run", run.problems),
        *listed("Limits", limits(run)),
        Heading("What was run"),
        facts_grid(run_facts(run)),
        Heading("Machine"),
        facts_grid({"machine": m.machine, "device": m.device, **flat_facts(m.environment)}),
        Heading("Calibration", 3),
        facts_grid(
            {"priced on": m.hardware.title, "source": m.hardware.source} | flat_facts(calibration)
        ),
        Heading("Reproduce"),
        Command(m.command),
    )


def _results(table: ReportTable) -> Iterable[Block]:
    yield Heading("Results")
    if not table.sections:
        yield Paragraph("No case was planned, predicted or measured.")
        return
    titles = [column.title + column.marks for column in table.columns]
    texts = [i for i, column in enumerate(table.columns) if column.is_text]
    for level, sections in groupby(table.sections, lambda section: section.level):
        rows: list[Sequence[str] | str] = []
        for section in sections:
            rows += [section.workload, *table.shown_rows(section)]
        yield Heading(level_title(level), 3)
        yield Grid(titles, rows, texts)
    for note in (LEGEND, *table.footnotes):
        yield Paragraph(note, is_small=True)


def _overheads(records: Sequence[Record]) -> Iterable[Block]:
    overheads = [(r, o) for r in records if (o := ratio(r, "overhead")) is not None]
    if not overheads:
        return
    yield Heading("What adaptive routing itself costs")
    yield Paragraph(
        "Measured time over the time interpolated, at the router's mean k, between the baseline "
        "and the smaller fixed k of the same cell. Above 1, the router takes longer than its mean "
        "number of experts accounts for. Where a step touches few experts, time is not linear in "
        "k and the interpolation is a convention."
    )
    rows = []
    for r, o in overheads:
        workload, result = r.case.workload, (ratio_text(o), o.verdict or "", str(o.n))
        rows.append((LEVELS[workload.level], workload.label, r.case.router.title, *result))
    titles = ("level", "workload", "router", "overhead (95 %)", "verdict", "rounds")
    yield Grid(titles, rows, (0, 1, 2, 4))


def _errors(records: Sequence[Record]) -> Iterable[Block]:
    if not (errors := prediction_errors(records)):
        return
    yield Heading("How good the predictions were")
    yield Paragraph(
        "Errors are predicted over measured latency, less 1; every prediction was written before "
        "its case was measured."
    )
    rows = []
    for e in errors:
        phase = "all phases" if e.phase == "all" else e.phase
        absolute = percent(e.median_absolute), percent(e.p90_absolute)
        level, median = LEVELS.get(e.level, "both levels"), percent(e.median, signed=True)
        rows.append((phase, level, str(e.n), median, *absolute))
    titles = ("phase", "level", "cases", "median error", "median |error|", "P90 |error|")
    yield Grid(titles, rows, (0, 1))


def _flops(records: Sequence[Record]) -> Iterable[Block]:
    """How far the two FLOP counters are from the closed form on the step that they counted."""
    if not records:
        return
    measured = [(r.case, r.measurement.flops) for r in records if r.measurement]
    stand_ins = dict.fromkeys(
        f" FLOP counters cannot look inside {case.backend}: {flops.counted} ran its routing while "
        "they counted."
        for case, flops in measured
        if flops.counted
    )
    divisor = max((flops.width_divisor for _, flops in measured), default=1)
    narrow = f", through layers {divisor} times narrower" * (divisor > 1)
    yield Heading("FLOPs three ways")
    yield Paragraph(
        "Largest difference of each counter from the closed form, over the cases of a router and "
        f"on the one step that was counted{narrow}; 2 FLOP a multiply-add. Counts with an "
        "operation that a counter cannot count are incomplete and not compared."
        + "".join(stand_ins)
    )
    rows = []
    for title in titles_of(records):
        counts = [flops for case, flops in measured if case.router.title == title]
        complete = [c for c in counts if c.complete]
        uncounted = sorted({name for c in counts for name in c.unsupported if not c.complete})
        fvcore = _largest_difference((c.fvcore, c.traced_closed_form) for c in complete)
        torch = _largest_difference((c.torch, c.traced_closed_form) for c in complete)
        compared = f"{len(complete)} of {len(counts)}"
        rows.append((title, compared, fvcore, torch, ", ".join(uncounted) or DASH))
    heads = ("router", "complete counts", "fvcore ×2", "torch", "cannot be counted")
    yield Grid(heads, rows, (0, 4))


def _largest_difference(pairs: Iterable[tuple[float | None, float]]) -> str:
    shares = [abs(count / closed - 1) for count, closed in pairs if count is not None and closed]
    if not shares:
        return DASH
    return "equal" if max(shares) < 1e-9 else percent(max(shares))
