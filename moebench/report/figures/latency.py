"""Latency: by stage, against the roofline, and predicted against measured."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from moebench.compare.pairs import prediction_errors
from moebench.records.results import Record
from moebench.records.run import KeptRun
from moebench.report.figures.style import (
    BAND,
    INK,
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
    shown,
    titles_of,
)
from moebench.report.notation import level_title, percent
from moebench.units import text

MERGED_STAGES = {"dispatch": "experts", "combine": "experts"}
STAGE_COLOURS = {
    "norm": "#DDCC77",
    "attention": "#77AADD",
    "router": "#EE8866",
    "experts": "#44557C",
    "shared": "#99DDFF",
    "head": "#AAAA00",
    "backward": "#AA4499",
    "not split": "#CCCCCC",
}


def latency_by_stage(level: str, run: KeptRun) -> Figure | str:
    """Where a step's time goes: measured stages above, predicted stages below, for each case."""
    records = [r for r in run.records if r.case.workload.level == level]
    if not records:
        return NOTHING
    labels, titles = list(dict.fromkeys(r.case.workload.label for r in records)), titles_of(records)
    columns = min(4, len(labels))
    rows = -(-len(labels) // columns)
    figure = Figure(figsize=(WIDTH, 0.9 + rows * (0.75 + 0.3 * len(titles))), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    used: set[str] = set()
    for axes, label in zip(grid, labels, strict=False):
        own = {r.case.router.title: r for r in records if r.case.workload.label == label}
        most = max(max(r.estimate.latency, measurement_of(r).latency.value) for r in own.values())
        unit, scale = ("s", 1.0) if most >= 1 else ("ms", 1e3) if most >= 1e-3 else ("µs", 1e6)
        for y, title in enumerate(titles):
            if title in own:
                record = own[title]
                stages = merged_stages(measurement_of(record).by_stage) or {
                    "not split": measurement_of(record).latency.value
                }
                used |= _stack(axes, y - 0.19, stages, scale, "")
                used |= _stack(axes, y + 0.19, merged_stages(record.estimate.by_stage), scale, "/")
        axes.set_title(label)
        axes.set_xlabel(f"{unit} a step")
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(titles) - 0.45, -0.55)
        axes.xaxis.set_major_locator(MaxNLocator(4))
    for axes in grid[len(labels) :]:
        axes.set_axis_off()
    grid[0].set_yticks(range(len(titles)), [shown(title) for title in titles])
    handles: list[Any] = [Patch(color=c, label=s) for s, c in STAGE_COLOURS.items() if s in used]
    handles.append(Patch(facecolor="#999999", label="upper bar: measured"))
    handles.append(
        Patch(facecolor="#cccccc", edgecolor="white", hatch="////", label="lower bar: predicted")
    )
    add_legend(figure, handles)
    return figure


def merged_stages(by_stage: Mapping[str, float]) -> dict[str, float]:
    """Stages with dispatch and combine counted to the experts, without the optimizer.

    A step's latency does not include the optimizer, which is timed apart.
    """
    merged: dict[str, float] = {}
    for stage, seconds in by_stage.items():
        if stage == "optimizer":
            continue
        name = MERGED_STAGES.get(stage, stage)
        merged[name] = merged.get(name, 0.0) + seconds
    return dict(sorted(merged.items(), key=lambda item: list(STAGE_COLOURS).index(item[0])))


def _stack(axes: Axes, y: float, stages: Mapping[str, float], scale: float, hatch: str) -> set[str]:
    left = 0.0
    for stage, seconds in stages.items():
        axes.barh(
            y,
            seconds * scale,
            left=left,
            height=0.34,
            color=STAGE_COLOURS[stage],
            alpha=0.62 if hatch else 1.0,
            hatch=hatch * 4,
            edgecolor="white",
            linewidth=0.0,
        )
        left += seconds * scale
    return set(stages)


def roofline(run: KeptRun) -> Figure | str:
    """Measured FLOP/s against compulsory intensity, under the machine's two roofs."""
    records = [r for r in run.records if r.estimate.bytes_moved]
    if not records:
        return "no estimate says how many bytes its case moves"
    hardware, dtype = run.manifest.hardware, records[0].case.workload.dtype
    if dtype not in hardware.peak:
        return f"{hardware.name} has no peak for {dtype}"
    colours, levels = router_colours(run), levels_of(records)
    figure = Figure(figsize=(WIDTH, 4.1), layout="constrained")
    grid = figure.subplots(1, len(levels), sharex=True, sharey=True, squeeze=False)[0]
    peak, bandwidth = hardware.peak_for(dtype), hardware.memory_bandwidth
    points = {id(r): _roofline_point(r) for r in records}
    x = np.array([p[0] for p in points.values()] + [peak / bandwidth])
    ends = np.array([x.min() / 2.5, x.max() * 2.5])
    line = np.geomspace(float(ends[0]), float(ends[1]), 200)
    slope = float(np.sqrt(ends[0] * peak / bandwidth))
    for axes, level in zip(grid, levels, strict=True):
        axes.plot(line, np.minimum(peak, bandwidth * line), color=INK, linewidth=1.4)
        axes.annotate(
            text(peak, "rate"),
            (ends[1], peak),
            xytext=(-2, 4),
            textcoords="offset points",
            ha="right",
            size=8,
        )
        axes.annotate(
            text(bandwidth, "bandwidth"),
            (slope, bandwidth * slope),
            xytext=(-8, 4),
            textcoords="offset points",
            ha="right",
            size=8,
        )
        own = [r for r in records if r.case.workload.level == level]
        for record in own:
            intensity, rate = points[id(record)]
            axes.plot(
                intensity,
                rate,
                PHASE_MARKERS[record.case.workload.phase],
                color=colours[record.case.router.title],
                markersize=5.5,
                alpha=0.85,
                markeredgecolor="white",
                markeredgewidth=0.5,
            )
        for record in own:
            workload = record.case.workload
            is_baseline = record.case.router.title == run.manifest.baseline
            if is_baseline and workload.phase == "decode":
                axes.annotate(
                    f"b{workload.batch}",
                    points[id(record)],
                    xytext=(6, -9),
                    textcoords="offset points",
                    size=7,
                    color=MUTED,
                )
        axes.set(xscale="log", yscale="log", xlabel="FLOP per byte of compulsory traffic")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_title(level_title(level))
    grid[0].set_ylabel("measured FLOP/s")
    label_logarithmic(grid[0].yaxis, "rate")
    add_legend(figure, router_handles(run, records) + phase_handles(records))
    return figure


def _roofline_point(record: Record) -> tuple[float, float]:
    moved = record.estimate.bytes_moved
    assert moved is not None
    rate = measurement_of(record).flops.closed_form / measurement_of(record).latency.value
    return record.estimate.flops / moved, rate


def predicted_against_measured(run: KeptRun) -> Figure | str:
    """Every case once: on the line, the prediction was right."""
    records = list(run.records)
    if not records:
        return NOTHING
    colours, levels = router_colours(run), levels_of(records)
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    grid = figure.subplots(1, len(levels), sharex=True, sharey=True, squeeze=False)[0]
    values = [v for r in records for v in (r.estimate.latency, measurement_of(r).latency.value)]
    ends = np.array([min(values) / 1.6, max(values) * 1.6])
    for axes, level in zip(grid, levels, strict=True):
        axes.fill_between(ends, ends * 0.8, ends * 1.2, color=BAND, linewidth=0, zorder=0)
        axes.plot(ends, ends, color=INK, linewidth=1, zorder=1)
        own = [r for r in records if r.case.workload.level == level]
        for record in own:
            axes.plot(
                measurement_of(record).latency.value,
                record.estimate.latency,
                PHASE_MARKERS[record.case.workload.phase],
                color=colours[record.case.router.title],
                markersize=5.5,
                alpha=0.85,
                markeredgecolor="white",
                markeredgewidth=0.5,
            )
        whole = prediction_errors(own)[-1]
        axes.text(
            0.03,
            0.97,
            f"{whole.n} cases\nmedian |error| {percent(whole.median_absolute)}\n"
            f"P90 |error| {percent(whole.p90_absolute)}\n"
            f"median error {percent(whole.median, signed=True)}",
            transform=axes.transAxes,
            va="top",
            size=8.5,
            linespacing=1.5,
        )
        axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="measured, a step")
        axes.set_aspect("equal")
        axes.set_title(level_title(level))
        label_logarithmic(axes.xaxis, "time")
        label_logarithmic(axes.yaxis, "time")
    grid[0].set_ylabel("predicted, a step")
    handles = router_handles(run, records) + phase_handles(records)
    add_legend(figure, [*handles, Patch(color=BAND, label="within ±20 %")])
    return figure


DRAWINGS = (
    Drawing(
        "stages-moe",
        "MoE layer: latency by stage",
        "Upper bars measured in an instrumented pass of its own, lower bars predicted; experts "
        "with dispatch and combine. Grey bars: measured, but not split into stages.",
        lambda run: latency_by_stage("moe", run),
    ),
    Drawing(
        "stages-decoder",
        "Decoder layer: latency by stage",
        "Upper bars measured in an instrumented pass of its own, lower bars predicted; experts "
        "with dispatch and combine. Grey bars: measured, but not split into stages.",
        lambda run: latency_by_stage("decoder", run),
    ),
    Drawing(
        "roofline",
        "Roofline with the measured points",
        "Vertical: counted FLOPs over measured time. Horizontal: FLOPs over the bytes that must "
        "move at least, as estimated. A point above the roof had weights in the cache.",
        roofline,
    ),
    Drawing(
        "predicted-against-measured",
        "Predicted against measured latency",
        "One point a case; on the line the prediction was right, in the grey band it is within "
        "20 %. Errors are predicted over measured, less 1.",
        predicted_against_measured,
    ),
)
