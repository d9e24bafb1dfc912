"""A run's report, all from its records: files in its directory, text for a terminal, JSON."""

from pathlib import Path
from typing import Any

from moebench.compare.pairs import corrected
from moebench.compare.prediction_errors import prediction_error, prediction_errors
from moebench.files import replace_file
from moebench.records.record import Record
from moebench.records.run import Run
from moebench.report.cases import LEGEND, measured_only, measurement_of, run_table
from moebench.report.conditions import conditions, noise_floor, stop_reasons
from moebench.report.document import Picture, markdown, page
from moebench.report.host import memory_state, warnings
from moebench.report.notation import percent
from moebench.report.sections import report_blocks
from moebench.report.summary import summary
from moebench.report.table import fill, render_text
from moebench.spec.schema import encode
from moebench.units import printable


def write_report(run: Run) -> tuple[Path, ...]:
    """Write figures, report.md and report.html into the run's directory; returns their paths."""
    pictures, missing = draw_figures(run)
    blocks = report_blocks(run, pictures, missing)
    files = {f"{picture.name}.png": picture.png for picture in pictures}
    files["report.md"] = markdown(blocks).encode()
    files["report.html"] = page(run.manifest.title, blocks).encode()
    for name, data in files.items():
        replace_file(run.directory / name, data)
    return tuple(run.directory / name for name in files)


def draw_figures(run: Run) -> tuple[list[Picture], list[str]]:
    """Figures that the records of a run allow, and for each of the others why it is missing."""
    # Importing matplotlib takes longer than everything else a report does.
    from moebench.report.figures import latency, resources, speedup
    from moebench.report.figures.style import png, styled

    measured_only(run.records)
    pictures, missing = [], []
    with styled():
        for drawing in (*speedup.DRAWINGS, *latency.DRAWINGS, *resources.DRAWINGS):
            figure = drawing.draw(run)
            if isinstance(figure, str):
                missing.append(f"No figure “{drawing.title}”: {figure}.")
                continue
            caption = f"{drawing.title}. {drawing.explanation} {conditions(run)}"
            pictures.append(Picture(drawing.name, drawing.title, caption, png(figure)))
    return pictures, missing


def terminal_report(run: Run) -> str:
    """The report for a terminal: the table, its footnotes, and the errors of the predictions."""
    m = run.manifest
    title = printable(f"{m.title} · {m.machine} · {m.dtype}")
    opening = [*summary(run), *(f"⚠ {warning}" for warning in warnings(run))]
    lines = [title, "", *map(fill, opening), "", render_text(run_table(run)), "", fill(LEGEND)]
    if errors := prediction_errors(run.records):
        whole = errors[-1]
        lines += [
            "",
            f"Predictions of {whole.n} cases: median |error| {percent(whole.median_absolute)}, "
            f"P90 {percent(whole.p90_absolute)}, median {percent(whole.median, signed=True)}.",
        ]
    lines += [
        *stop_reasons(run.records),
        *memory_state(run),
        f"Noise floor of this machine: {noise_floor(run)}.",
        *(f"⚠ {printable(problem)}" for problem in run.problems),
    ]
    return "\n".join([*lines, "", f"{len(run.records)} records → {run.directory}"])


def run_summary(run: Run) -> dict[str, Any]:
    """The run as the JSON document that `--json` prints, in SI units."""
    return {
        "run": run.manifest.run,
        "directory": str(run.directory),
        "status": run.manifest.status,
        "summary": list(summary(run)),
        "cases": [_case_summary(record) for record in measured_only(corrected(run.records))],
        "failures": encode(run.failures),
        "prediction_errors": encode(prediction_errors(run.records)),
        "warnings": list(warnings(run)),
        "problems": list(run.problems),
    }


def _case_summary(record: Record) -> dict[str, Any]:
    measurement, workload = measurement_of(record), record.case.workload
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
