"""Figures of peak memory and energy."""

from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from moebench.records.record import Record
from moebench.records.run import Run
from moebench.report.cases import labels_of, measurement_of, titles_of
from moebench.report.figures import style

PARTS = {"weights": 0.35, "KV cache": 0.65, "activations": 1.0}
"""Opacity of the parts of a case's memory, from the lowest."""


def peak_memory(run: Run) -> Figure | str:
    """Figure of the peak memory of each case: weights, KV cache, activations."""
    records = list(run.records)
    if not records:
        return style.NOTHING
    colours, labels = style.router_colours(run), labels_of(records)
    spacing = 0.84 / len(titles_of(records))
    largest = max(sum(_sizes(record)) for record in records)
    name, unit = ("GiB", 2**30) if largest >= 2**29 else ("MiB", 2**20)
    figure, grid = style.level_panels(records, 2.1, stacked=True)
    for axes, own in grid:
        for record in own:
            colour, x = colours[record.case.router.title], _place(record, records, spacing)
            bottom = 0.0
            for size, alpha in zip(_sizes(record), PARTS.values(), strict=True):
                axes.bar(x, size / unit, 0.9 * spacing, bottom, color=colour, alpha=alpha)
                bottom += size / unit
            if measurement_of(record).memory.activations is None:
                axes.annotate("?", (x, bottom), ha="center", va="bottom", size=7, color=style.MUTED)
        axes.set_ylabel(name)
        style.clear_axis(axes, "x")
    grid[-1][0].set_xticks(range(len(labels)), labels)
    titles = titles_of(records)
    handles: list[Any] = [Patch(color=colours[t], label=style.shown(t)) for t in titles]
    handles += [Patch(color="black", alpha=alpha, label=part) for part, alpha in PARTS.items()]
    if any(measurement_of(r).memory.activations is None for r in records):
        handles.append(Line2D([], [], linestyle="", label="?: not read"))
    style.add_legend(figure, handles)
    return figure


def _place(record: Record, records: list[Record], spacing: float) -> float:
    """Where a case stands on the x axis: routers side by side at the place of their workload."""
    titles = titles_of(records)
    offset = titles.index(record.case.router.title) - (len(titles) - 1) / 2
    return labels_of(records).index(record.case.workload.label) + offset * spacing


def _sizes(record: Record) -> tuple[float, ...]:
    """Bytes of a case's `PARTS`; 0 for activations that were not read."""
    memory = measurement_of(record).memory
    return memory.weights, memory.cache, memory.activations or 0.0


def energy_per_token(run: Run) -> Figure | str:
    """Figure of gross energy per token, by workload."""
    records = [r for r in run.records if measurement_of(r).energy.joules is not None]
    if not records:
        reasons = dict.fromkeys(str(measurement_of(r).energy.missing) for r in run.records)
        return "; ".join(reasons) or style.NOTHING
    colours, labels = style.router_colours(run), labels_of(records)
    figure, grid = style.level_panels(records, 2.0, stacked=True)
    for axes, own in grid:
        for record in own:
            workload, joules = record.case.workload, measurement_of(record).energy.joules
            assert joules is not None
            place, marker = _place(record, records, 0.13), style.PHASE_MARKERS[workload.phase]
            colour = colours[record.case.router.title]
            axes.plot(place, joules / workload.num_tokens, marker, color=colour, markersize=5.5)
        axes.set_yscale("log")
        style.label_logarithmic(axes.yaxis, "energy")
        axes.set_ylabel("energy a token")
    grid[-1][0].set_xticks(range(len(labels)), labels)
    style.add_legend(figure, style.case_handles(run, records))
    return figure


DRAWINGS = (
    style.Drawing(
        "memory",
        "Peak memory",
        "Each case alone, in a pass of its own; from pale to full colour: weights of the layers "
        "run, KV cache, activations (in training with gradients).",
        peak_memory,
    ),
    style.Drawing("energy", "Energy per token", "Gross: idle power included.", energy_per_token),
)
