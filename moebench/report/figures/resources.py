"""Resources: peak memory and energy."""

from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from moebench.records.results import Record
from moebench.records.run import KeptRun
from moebench.report.figures.style import (
    MUTED,
    NOTHING,
    PHASE_MARKERS,
    WIDTH,
    Drawing,
    add_legend,
    label_logarithmic,
    levels_of,
    measurement_of,
    phase_handles,
    router_colours,
    router_handles,
    titles_of,
)
from moebench.report.notation import level_title


def peak_memory(run: KeptRun) -> Figure | str:
    """Peak memory of each case alone: weights, KV cache, activations."""
    records = list(run.records)
    if not records:
        return NOTHING
    colours, levels, titles = router_colours(run), levels_of(records), titles_of(records)
    labels = list(dict.fromkeys(r.case.workload.label for r in records))
    figure = Figure(figsize=(WIDTH, 0.9 + 2.1 * len(levels)), layout="constrained")
    grid = figure.subplots(len(levels), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    width = 0.84 / len(titles)
    largest = max(_measured_bytes(record) for record in records)
    name, unit = ("GiB", 2**30) if largest >= 2**29 else ("MiB", 2**20)
    for axes, level in zip(grid, levels, strict=True):
        for record in records:
            if record.case.workload.level != level:
                continue
            memory, title = measurement_of(record).memory, record.case.router.title
            offset = (titles.index(title) - (len(titles) - 1) / 2) * width
            place = labels.index(record.case.workload.label) + offset
            bottom = 0.0
            for value, alpha in ((memory.weights, 0.35), (memory.cache, 0.65)):
                axes.bar(
                    place, value / unit, 0.9 * width, bottom, color=colours[title], alpha=alpha
                )
                bottom += value / unit
            if memory.activations is None:
                axes.annotate("?", (place, bottom), ha="center", va="bottom", size=7, color=MUTED)
            else:
                axes.bar(
                    place, memory.activations / unit, 0.9 * width, bottom, color=colours[title]
                )
        axes.set_title(level_title(level))
        axes.set_ylabel(name)
        axes.grid(axis="x", visible=False)
        axes.tick_params(axis="x", length=0)
    grid[-1].set_xticks(range(len(labels)), labels)
    parts: list[Any] = [
        Patch(color="black", alpha=alpha, label=part)
        for part, alpha in (("weights", 0.3), ("KV cache", 0.6), ("activations", 1.0))
    ]
    if any(measurement_of(r).memory.activations is None for r in records):
        parts.append(Line2D([], [], linestyle="", label="?: not read"))
    add_legend(figure, router_handles(run, records, patches=True) + parts)
    return figure


def _measured_bytes(record: Record) -> float:
    memory = measurement_of(record).memory
    return memory.weights + memory.cache + (memory.activations or 0.0)


def energy_per_token(run: KeptRun) -> Figure | str:
    """Gross energy per token, by workload."""
    records = [r for r in run.records if measurement_of(r).energy.joules is not None]
    if not records:
        reasons = dict.fromkeys(str(measurement_of(r).energy.missing) for r in run.records)
        return "; ".join(reasons) or NOTHING
    colours, levels, titles = router_colours(run), levels_of(records), titles_of(records)
    labels = list(dict.fromkeys(r.case.workload.label for r in records))
    figure = Figure(figsize=(WIDTH, 0.9 + 2.0 * len(levels)), layout="constrained")
    grid = figure.subplots(len(levels), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, level in zip(grid, levels, strict=True):
        for record in records:
            w, title = record.case.workload, record.case.router.title
            joules = measurement_of(record).energy.joules
            if w.level == level and joules is not None:
                offset = 0.13 * (titles.index(title) - (len(titles) - 1) / 2)
                axes.plot(
                    labels.index(w.label) + offset,
                    joules / w.num_tokens,
                    PHASE_MARKERS[w.phase],
                    color=colours[title],
                    markersize=5.5,
                )
        axes.set_yscale("log")
        label_logarithmic(axes.yaxis, "energy")
        axes.set_title(level_title(level))
        axes.set_ylabel("energy a token")
    grid[-1].set_xticks(range(len(labels)), labels)
    add_legend(figure, router_handles(run, records) + phase_handles(records))
    return figure


DRAWINGS = (
    Drawing(
        "memory",
        "Peak memory",
        "Each case alone, in a pass of its own; from pale to full colour: weights of the layers "
        "run, KV cache, activations (in training with gradients).",
        peak_memory,
    ),
    Drawing(
        "energy",
        "Energy per token",
        "Gross: idle power included.",
        energy_per_token,
    ),
)
