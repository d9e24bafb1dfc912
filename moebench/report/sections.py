"""A run for people: the table on the terminal, report.md, report.html and the figures.

Everything comes from the records of a run's directory, so a report can be rebuilt at any time:

    python -m moebench.report results/mixtral/<machine>/<run>
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from moebench.compare.pairs import corrected, prediction_error, prediction_errors
from moebench.compare.rounds import MIN_ROUNDS
from moebench.experts.catalogue import EXPERT_BACKENDS
from moebench.files import replace_file
from moebench.records.results import Record
from moebench.records.run import KeptRun
from moebench.report.document import (
    Block,
    Bullets,
    Command,
    Grid,
    Group,
    Heading,
    Paragraph,
    Picture,
    markdown,
    page,
    plain_grid,
)
from moebench.report.facts import facts_grid, flat
from moebench.report.figures.plates import NoPlate, Plate, draw_figures, foundation, noise_floor
from moebench.report.table import (
    DASH,
    LEGEND,
    LEVELS,
    Table,
    fill,
    measured_only,
    percent,
    ratio,
    ratio_text,
    render_text,
    run_table,
)
from moebench.spec.codec import encode
from moebench.units import printable, text

STOPS = {
    "precise": "because every speedup was as precise as asked for",
    "budget": "because their time was spent",
    "max-rounds": "after the largest number of rounds",
    "no-case-left": "because every case failed",
}


def write_report(run: KeptRun) -> tuple[Path, ...]:
    """Write figures, report.md and report.html into the run's directory; returns their paths.

    Raises:
        ValueError: a record was not measured, or a file cannot be written.
    """
    plates, absent = draw_figures(run)
    blocks = report_blocks(run, plates, absent)
    files = {f"{plate.name}.png": plate.png for plate in plates}
    files["report.md"] = markdown(blocks).encode()
    files["report.html"] = page(run.manifest.title, blocks).encode()
    for name, data in files.items():
        replace_file(run.directory / name, data)
    return tuple(run.directory / name for name in files)


def terminal_report(run: KeptRun) -> str:
    """What a suite prints at its end: the table, its footnotes, and the predictions' errors."""
    m = run.manifest
    lines = [
        printable(f"{m.title} · {m.machine} · {m.dtype}"),
        "",
        render_text(run_table(run)),
        "",
        fill(LEGEND),
    ]
    errors = prediction_errors(run.records)
    if errors:
        whole = errors[-1]
        lines += [
            "",
            f"Predictions of {whole.n} cases: median |error| {percent(whole.median_absolute)}, "
            f"P90 {percent(whole.p90_absolute)}, median {percent(whole.median, signed=True)}.",
        ]
    lines += [
        *_stops(run.records),
        f"Noise floor of this machine: {noise_floor(run)}.",
        *(f"⚠ {printable(problem)}" for problem in run.problems),
    ]
    return "\n".join([*lines, "", f"{len(run.records)} records → {run.directory}"])


def report_blocks(
    run: KeptRun, plates: Sequence[Plate], absent: Sequence[NoPlate]
) -> tuple[Block, ...]:
    """The report's text, tables and figures in reading order."""
    m, table = run.manifest, run_table(run)
    return (
        Heading(m.title, 1),
        Paragraph(f"{m.machine} · {m.dtype} · suite {m.suite} · run {m.run} · {_status(run)}"),
        *(Picture(plate) for plate in plates[:1]),
        *_results(table),
        *_figures(plates[1:], absent),
        *_overheads(run.records),
        *_errors(run.records),
        *_flops(run.records),
        *_failures(run),
        Heading("Limits"),
        Bullets(_limits(run)),
        Heading("What was run"),
        facts_grid(_run_facts(run)),
        Heading("Machine"),
        facts_grid({"machine": m.machine, "device": m.device, **flat(m.environment)}),
        Heading("Calibration", 3),
        facts_grid(
            {"priced on": m.hardware.title, "source": m.hardware.source} | flat(m.calibration)
        ),
        Heading("Reproduce"),
        Command(m.command),
    )


def run_summary(run: KeptRun) -> dict[str, Any]:
    """The run as one JSON document, in SI units: what `--json` prints."""
    return {
        "run": run.manifest.run,
        "directory": str(run.directory),
        "status": run.manifest.status,
        "cases": [_case_summary(record) for record in measured_only(corrected(run.records))],
        "failures": encode(run.failures),
        "prediction_errors": encode(prediction_errors(run.records)),
        "problems": list(run.problems),
    }


def _case_summary(record: Record) -> dict[str, Any]:
    measurement, workload = record.measurement, record.case.workload
    assert measurement is not None
    return {
        "case": record.case.key,
        "level": workload.level,
        "workload": workload.label,
        "router": record.case.router.title,
        "launch": record.launch,
        "mean_k": measurement.measured_mean_k,
        "distinct_experts": measurement.load.distinct_experts,
        "flops_per_token": measurement.flops.closed_form / workload.num_tokens,
        "latency_s": measurement.latency.value,
        "latency_low_s": measurement.latency.low,
        "latency_high_s": measurement.latency.high,
        "predicted_latency_s": record.estimate.latency,
        "prediction_error": prediction_error(record),
        "ratios": encode(record.ratios),
        "stopped": measurement.stopped,
        "energy_j": measurement.energy.joules,
        "energy_missing": measurement.energy.missing,
        "peak_memory_bytes": measurement.memory.peak,
        "caveats": sorted({c.kind for c in (*measurement.caveats, *record.estimate.caveats)}),
    }


def _status(run: KeptRun) -> str:
    planned = sum(len(cell.cases) for cell in run.manifest.cells)
    counts = f"{len(run.records)} of {planned} cases measured"
    return counts if run.manifest.status == "done" else f"{counts}, {run.manifest.status}"


def _results(table: Table) -> Iterable[Block]:
    yield Heading("Results")
    if not table.sections:
        yield Paragraph("No case was planned, predicted or measured.")
        return
    titles = tuple(column.title + column.marks for column in table.columns)
    texts = frozenset(i for i, column in enumerate(table.columns) if column.is_text)
    for level in dict.fromkeys(section.level for section in table.sections):
        groups = tuple(
            Group(
                section.workload,
                tuple(
                    tuple(row.cells[c.key].text + row.marks[c.key] for c in table.columns)
                    for row in section.rows
                ),
            )
            for section in table.sections
            if section.level == level
        )
        yield Heading(LEVELS[level][0].upper() + LEVELS[level][1:], 3)
        yield Grid(titles, groups, texts)
    yield Paragraph(LEGEND, is_small=True)
    for mark, note in table.footnotes:
        yield Paragraph(f"{mark} {note}", is_small=True)


def _figures(plates: Sequence[Plate], absent: Sequence[NoPlate]) -> Iterable[Block]:
    yield Heading("Figures")
    yield from (Picture(plate) for plate in plates)
    if absent:
        yield Bullets(tuple(f"No figure “{a.title}”: {a.reason}." for a in absent))


def _overheads(records: Sequence[Record]) -> Iterable[Block]:
    found = [(r, o) for r in records if (o := ratio(r, "overhead")) is not None]
    if not found:
        return
    yield Heading("What adaptive routing itself costs")
    yield Paragraph(
        "Measured time over the time interpolated, at the router's mean k, between the baseline "
        "and the smaller fixed k of the same cell. Above 1, the router takes longer than its mean "
        "number of experts accounts for. Where a step touches few experts, time is not linear in "
        "k and the interpolation is a convention."
    )
    rows = [
        (
            LEVELS[r.case.workload.level],
            r.case.workload.label,
            r.case.router.title,
            ratio_text(o),
            o.verdict or "",
            str(o.n),
        )
        for r, o in found
    ]
    yield plain_grid(
        ("level", "workload", "router", "overhead (95 %)", "verdict", "rounds"), rows, (0, 1, 2, 4)
    )


def _errors(records: Sequence[Record]) -> Iterable[Block]:
    errors = prediction_errors(records)
    if not errors:
        return
    yield Heading("How good the predictions were")
    yield Paragraph(
        "Errors are predicted over measured latency, less 1; every prediction was written before "
        "its case was measured."
    )
    rows = [
        (
            e.phase if e.phase != "all" else "all phases",
            LEVELS.get(e.level, "both levels"),
            str(e.n),
            percent(e.median, signed=True),
            percent(e.median_absolute),
            percent(e.p90_absolute),
        )
        for e in errors
    ]
    yield plain_grid(
        ("phase", "level", "cases", "median error", "median |error|", "P90 |error|"), rows, (0, 1)
    )


def _flops(records: Sequence[Record]) -> Iterable[Block]:
    """How far the two counters are from the closed form on the step that they saw."""
    titles = dict.fromkeys(record.case.router.title for record in records)
    if not titles:
        return
    yield Heading("FLOPs three ways")
    yield Paragraph(
        "Largest difference of each counter from the closed form, over the cases of a router and "
        "on the one step that the counters saw; 2 FLOP a multiply-add. Counts with an operation "
        "that a counter cannot count are incomplete and not compared." + _counted_as(records)
    )
    rows = []
    for title in titles:
        counts = [
            r.measurement.flops for r in records if r.measurement and r.case.router.title == title
        ]
        complete = [c for c in counts if c.complete]
        missing = sorted({name for c in counts for name in c.unsupported if not c.complete})
        rows.append(
            (
                title,
                f"{len(complete)} of {len(counts)}",
                _largest_difference((c.fvcore, c.traced_closed_form) for c in complete),
                _largest_difference((c.torch, c.traced_closed_form) for c in complete),
                ", ".join(missing) or DASH,
            )
        )
    yield plain_grid(
        ("router", "complete counts", "fvcore ×2", "torch", "cannot be counted"), rows, (0, 4)
    )


def _largest_difference(pairs: Iterable[tuple[float | None, float]]) -> str:
    found = [abs(count / closed - 1) for count, closed in pairs if count is not None and closed]
    if not found:
        return DASH
    return "equal" if max(found) < 1e-9 else percent(max(found))


def _counted_as(records: Sequence[Record]) -> str:
    """Which expert backend ran while the counters watched, where it was not the case's own."""
    pairs = dict.fromkeys(
        (record.case.backend, record.measurement.flops.counted)
        for record in records
        if record.measurement and record.measurement.flops.counted
    )
    return "".join(
        f" Counters do not see into {own}: while they watched, {seen} ran its routing."
        for own, seen in pairs
    )


def _failures(run: KeptRun) -> Iterable[Block]:
    if run.failures:
        yield Heading("Cases that gave no number")
        yield Bullets(tuple(f"{f.case}: {f.kind}: {f.message}" for f in run.failures))
    if run.problems:
        yield Heading("What is wrong with the files of this run")
        yield Bullets(run.problems)


def _limits(run: KeptRun) -> tuple[str, ...]:
    """What the numbers do not say."""
    measured = [record.measurement for record in run.records if record.measurement]
    rounds = [len({sample.round for sample in m.samples}) for m in measured]
    limits = [
        "Quality: not measured (random weights). A speedup here is worth nothing if the router "
        "that reaches this operating point is worse.",
        "Operating points are imposed, not learned: "
        "real routers correlate from token to token and from layer to layer.",
        f"Noise floor of this machine: {noise_floor(run)}.",
        "Layers are measured, not whole models: no embedding, LM head, sampling or scheduler.",
    ]
    if rounds:
        few = sum(n < MIN_ROUNDS for n in rounds)
        limits.append(
            f"Rounds in a cell: {' to '.join(map(str, sorted({min(rounds), max(rounds)})))}"
            + (f"; {few} cases had fewer than {MIN_ROUNDS}, too few for a verdict." if few else ".")
        )
    limits += _stops(run.records)
    methods = dict.fromkeys(m.memory.method for m in measured)
    if methods:
        limits.append(f"Peak memory by: {'; '.join(methods)}.")
    twice = [n for n in _known_backends(run.records) if EXPERT_BACKENDS[n].layout != "plain"]
    if twice:
        limits.append(
            f"Peak memory of {' and '.join(twice)} holds the experts' weights twice, as parameters "
            "and in blocks."
        )
    if any(m.launch == "graph" for m in measured):
        limits.append("Peak memory of graphs is that of eager steps, without their pools.")
    missing = dict.fromkeys(m.energy.missing for m in measured if m.energy.missing)
    limits += [f"No energy: {reason}." for reason in missing]
    if run.manifest.hardware.kind == "cpu" and measured:
        limits.append("This is a CPU: how routers rank on a GPU is for a run on a GPU to say.")
    return tuple(limits)


def _known_backends(records: Sequence[Record]) -> set[str]:
    """Backends of the records; a run may be of a version that had others."""
    return {record.case.backend for record in records} & set(EXPERT_BACKENDS)


def _stops(records: Sequence[Record]) -> list[str]:
    """Why the rounds of the cells ended, in one line; nothing where no record says so."""
    cells = {record.cell: record.measurement for record in records}
    stops = Counter(m.stopped for m in cells.values() if m is not None and m.stopped)
    counts = [f"{n} {STOPS[stop]}" for stop, n in sorted(stops.items())]
    return [f"Why the cells stopped: {', '.join(counts)}."] if counts else []


def _run_facts(run: KeptRun) -> dict[str, str]:
    m = run.manifest
    facts = {
        "run": m.run,
        "suite": f"{m.suite} (SHA-256 {m.suite_sha256[:12]}…)",
        "status": _status(run),
        "commit": m.commit or f"{DASH} (not a git checkout)",
        "seed": str(m.seed),
        "started": m.started_at,
        "finished": m.finished_at or DASH,
        "resumed": ", ".join(m.resumed_at) or "never",
        "time budget": "none" if m.budget is None else text(m.budget, "time"),
        "rests on": foundation(run),
    }
    return facts | dict(m.versions)
