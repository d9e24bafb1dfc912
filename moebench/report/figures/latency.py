"""Figures of latency: by stage, against the roofline, and predicted against measured."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from moebench.compare.prediction_errors import prediction_errors
from moebench.records.record import Record
from moebench.records.run import Run
from moebench.report.cases import labels_of, measurement_of, titles_of
from moebench.report.figures import style
from moebench.report.notation import LEVELS, level_title, percent
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
PALE: Mapping[str, Any] = {"alpha": 0.62, "hatch": "////"}
"""Look of predicted stages."""


def latency_by_stage(level: str, run: Run) -> Figure | str:
    """Figure of the stages of a step: measured above, predicted below, for each case of a level."""
    records = [r for r in run.records if r.case.workload.level == level]
    if not records:
        return style.NOTHING
    labels, titles = labels_of(records), titles_of(records)
    columns = min(4, len(labels))
    rows = -(-len(labels) // columns)
    figure, grid = style.panels(rows, columns, 0.75 + 0.3 * len(titles), share_x=False)
    all_axes = [axes for row in grid for axes in row]
    used: set[str] = set()
    for axes, label in zip(all_axes, labels, strict=False):
        used |= _draw_stages(axes, [r for r in records if r.case.workload.label == label], titles)
        axes.set_title(label)
        style.clear_axis(axes, "y")
        axes.set_ylim(len(titles) - 0.45, -0.55)
        axes.xaxis.set_major_locator(MaxNLocator(4))
    for axes in all_axes[len(labels) :]:
        axes.set_axis_off()
    all_axes[0].set_yticks(range(len(titles)), [style.shown(title) for title in titles])
    handles = [
        *(Patch(color=colour, label=s) for s, colour in STAGE_COLOURS.items() if s in used),
        Patch(facecolor="#999999", label="upper bar: measured"),
        Patch(facecolor="#cccccc", edgecolor="white", hatch="////", label="lower bar: predicted"),
    ]
    style.add_legend(figure, handles)
    return figure


def _draw_stages(axes: Axes, records: Sequence[Record], titles: Sequence[str]) -> set[str]:
    """Draw a workload's cases, one line a router; returns the stages that have a bar."""
    largest = max(max(r.estimate.latency, measurement_of(r).latency.value) for r in records)
    unit, scale = ("s", 1.0) if largest >= 1 else ("ms", 1e3) if largest >= 1e-3 else ("µs", 1e6)
    used: set[str] = set()
    for record in sorted(records, key=lambda r: titles.index(r.case.router.title)):
        y, measured = titles.index(record.case.router.title), measurement_of(record)
        stages = merged_stages(measured.by_stage) or {"not split": measured.latency.value}
        predicted = merged_stages(record.estimate.by_stage)
        for place, bars, look in ((y - 0.19, stages, {}), (y + 0.19, predicted, PALE)):
            widths = scale * np.array([*bars.values()])
            left, colours = widths.cumsum() - widths, [STAGE_COLOURS[stage] for stage in bars]
            axes.barh(place, widths, 0.34, left, color=colours, ec="white", lw=0.0, **look)
            used |= set(bars)
    axes.set_xlabel(f"{unit} a step")
    return used


def merged_stages(by_stage: Mapping[str, float]) -> dict[str, float]:
    """Seconds by stage: experts with dispatch and combine, no optimizer, which is timed apart."""
    merged: dict[str, float] = {}
    for stage, seconds in by_stage.items():
        name = MERGED_STAGES.get(stage, stage)
        if name != "optimizer":
            merged[name] = merged.get(name, 0.0) + seconds
    return dict(sorted(merged.items(), key=lambda item: list(STAGE_COLOURS).index(item[0])))


def roofline(run: Run) -> Figure | str:
    """Figure of measured FLOP/s against FLOP per byte, under the machine's two roofs."""
    records = [r for r in run.records if r.estimate.bytes_moved]
    if not records:
        return "no estimate says how many bytes its case moves"
    hardware, dtype = run.manifest.hardware, records[0].case.workload.dtype
    if dtype not in hardware.peak:
        return f"{hardware.name} has no peak for {dtype}"
    colours = style.router_colours(run)
    peak, bandwidth = hardware.peak_for(dtype), hardware.memory_bandwidth
    points = {
        id(r): (r.estimate.flops / r.estimate.bytes_moved, m.flops.closed_form / m.latency.value)
        for r, m in zip(records, map(measurement_of, records), strict=True)
        if r.estimate.bytes_moved
    }
    ridge = peak / bandwidth
    x = [ridge, *(intensity for intensity, _ in points.values())]
    ends = np.array([min(x) / 2.5, max(x) * 2.5])
    line = np.array([ends[0], ridge, ends[1]])
    slope = float(np.sqrt(ends[0] * ridge))
    roofs = (
        (text(peak, "rate"), (ends[1], peak), (-2, 4)),
        (text(bandwidth, "bandwidth"), (slope, bandwidth * slope), (-8, 4)),
    )
    figure, grid = style.level_panels(records, 3.2)
    for axes, own in grid:
        axes.plot(line, np.minimum(peak, bandwidth * line), color=style.INK, linewidth=1.4)
        for name, place, offset in roofs:
            _annotate(axes, name, place, offset, ha="right", size=8)
        for record in own:
            workload, title = record.case.workload, record.case.router.title
            style.mark_case(axes, *points[id(record)], record, colours[title])
            if title == run.manifest.baseline and workload.phase == "decode":
                name, place = f"b{workload.batch}", points[id(record)]
                _annotate(axes, name, place, (6, -9), size=7, color=style.MUTED)
        axes.set(xscale="log", yscale="log", xlabel="FLOP per byte of compulsory traffic")
        axes.xaxis.set_major_formatter("{x:g}")
    left = grid[0][0]
    left.set_ylabel("measured FLOP/s")
    style.label_logarithmic(left.yaxis, "rate")
    style.add_legend(figure, style.case_handles(run, records))
    return figure


def _annotate(
    axes: Axes, name: str, place: tuple[float, float], offset: tuple[int, int], **look: Any
) -> None:
    """Write a name at an offset in points from a place."""
    axes.annotate(name, place, xytext=offset, textcoords="offset points", **look)


def predicted_against_measured(run: Run) -> Figure | str:
    """Figure of predicted against measured latency, one point a case."""
    records = list(run.records)
    if not records:
        return style.NOTHING
    colours = style.router_colours(run)
    values = [v for r in records for v in (r.estimate.latency, measurement_of(r).latency.value)]
    ends = np.array([min(values) / 1.6, max(values) * 1.6])
    figure, grid = style.level_panels(records, 3.7)
    for axes, own in grid:
        axes.fill_between(ends, ends * 0.8, ends * 1.2, color=style.BAND, linewidth=0, zorder=0)
        axes.plot(ends, ends, color=style.INK, linewidth=1, zorder=1)
        for record in own:
            latency, title = measurement_of(record).latency.value, record.case.router.title
            style.mark_case(axes, latency, record.estimate.latency, record, colours[title])
        whole = prediction_errors(own)[-1]
        errors = (
            f"{whole.n} cases\nmedian |error| {percent(whole.median_absolute)}\n"
            f"P90 |error| {percent(whole.p90_absolute)}\n"
            f"median error {percent(whole.median, signed=True)}"
        )
        axes.text(0.03, 0.97, errors, transform=axes.transAxes, va="top", size=8.5, linespacing=1.5)
        axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="measured, a step")
        axes.set_aspect("equal")
        style.label_logarithmic(axes.xaxis, "time")
        style.label_logarithmic(axes.yaxis, "time")
    grid[0][0].set_ylabel("predicted, a step")
    handles = style.case_handles(run, records)
    style.add_legend(figure, [*handles, Patch(color=style.BAND, label="within ±20 %")])
    return figure


DRAWINGS = (
    *(
        style.Drawing(
            f"stages-{level}",
            f"{level_title(level)}: latency by stage",
            "Upper bars measured in an instrumented pass of its own, lower bars predicted; experts "
            "with dispatch and combine. Grey bars: measured, but not split into stages.",
            partial(latency_by_stage, level),
        )
        for level in LEVELS
    ),
    style.Drawing(
        "roofline",
        "Roofline with the measured points",
        "Vertical: counted FLOPs over measured time. Horizontal: FLOPs over the bytes that must "
        "move at least, as estimated. A point above the roof had weights in the cache.",
        roofline,
    ),
    style.Drawing(
        "predicted-against-measured",
        "Predicted against measured latency",
        "One point a case; on the line the prediction was right, in the grey band it is within "
        "20 %. Errors are predicted over measured, less 1.",
        predicted_against_measured,
    ),
)
