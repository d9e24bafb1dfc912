"""Figures of speedup: measured with its interval, predicted, and what FLOPs promise."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from moebench.compare.intervals import Vector
from moebench.compare.pairs import SAME_MARGIN
from moebench.records.record import Record
from moebench.records.results import Ratio
from moebench.records.run import Run
from moebench.report.cases import labels_of, levels_of, ratio, titles_of
from moebench.report.figures import style
from moebench.report.notation import level_title

LOOKS: dict[str, dict[str, Any]] = {
    "speedup": {"marker": "o", "markersize": 4.5},
    "predicted-speedup": {"linestyle": "--", "linewidth": 1.3, **style.PREDICTED},
    "flops-promise": {"linestyle": ":", "linewidth": 1.3},
}
"""How each kind of ratio is drawn."""


def speedup_by_batch(run: Run) -> Figure | str:
    """Figure of speedup against batch in decode, one panel a level and router."""
    records = [r for r in _compared(run) if r.case.workload.phase == "decode"]
    if not records:
        return "no speedup was measured in decode"
    colours, levels, titles = style.router_colours(run), levels_of(records), titles_of(records)
    records.sort(key=lambda r: r.case.workload.batch)
    batches = sorted({r.case.workload.batch for r in records})
    figure, grid = style.panels(len(levels), len(titles), 2.35)
    for row, level in zip(grid, levels, strict=True):
        row[0].set_ylabel(f"{level_title(level)}\nspeedup")
        for axes, title in zip(row, titles, strict=True):
            place = level, title
            own = [r for r in records if (r.case.workload.level, r.case.router.title) == place]
            _draw_speedup_panel(axes, own, colours[title], run)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(style.shown(title), color=colours[title])
    for axes in grid[-1]:
        axes.set_xlabel("batch")
    axes = grid[0][0]
    style.batch_axis(axes, batches)
    axes.set_xlim(batches[0] / 1.6, batches[-1] * 1.6)
    axes.yaxis.set_major_formatter("{x:g}×")
    style.add_legend(figure, _ratio_handles())
    return figure


def _draw_speedup_panel(axes: Axes, records: Sequence[Record], colour: str, run: Run) -> None:
    """Draw the cases of a level and router, which have a speedup, in order of batch."""
    _draw_no_difference(axes.axhspan, axes.axhline, run)
    x = [r.case.workload.batch for r in records]
    for kind, ink in (("flops-promise", style.INK), ("predicted-speedup", colour)):
        points = [(b, p.value) for b, r in zip(x, records, strict=True) if (p := ratio(r, kind))]
        if points:
            axes.plot(*zip(*points, strict=True), color=ink, zorder=2, **LOOKS[kind])
    measured = [s for record in records if (s := ratio(record, "speedup"))]
    values, ends = np.array([r.value for r in measured]), _ends(measured)
    axes.fill_between(x, *ends, color=colour, alpha=0.18, linewidth=0)
    bars = np.abs(ends - values)
    axes.errorbar(x, values, bars, color=colour, elinewidth=1.2, zorder=3, **LOOKS["speedup"])


def speedup_elsewhere(run: Run) -> Figure | str:
    """Figure of speedup in prefill and training, one line a workload and router."""
    records = [r for r in _compared(run) if r.case.workload.phase != "decode"]
    if not records:
        return "no speedup was measured in prefill or training"
    colours, labels, titles = style.router_colours(run), labels_of(records), titles_of(records)
    places = {
        (label, title): i * (len(titles) + 1.6) + j
        for i, label in enumerate(labels)
        for j, title in enumerate(titles)
    }
    figure, grid = style.level_panels(records, 0.4 + 0.21 * (max(places.values()) + 1))
    for axes, own in grid:
        _draw_no_difference(axes.axvspan, axes.axvline, run)
        for record in own:
            title = record.case.router.title
            _draw_speedup(axes, record, places[record.case.workload.label, title], colours[title])
        axes.set_xlabel("speedup")
        axes.xaxis.set_major_formatter("{x:g}×")
        style.clear_axis(axes, "y")
    left = grid[0][0]
    ticks = [(places[label, titles[0]] - 1.0, label, style.INK) for label in labels]
    ticks += [(y, style.shown(title), colours[title]) for (_, title), y in places.items()]
    left.set_yticks([y for y, _, _ in ticks], [name for _, name, _ in ticks])
    for tick, (_, name, colour) in zip(left.get_yticklabels(), ticks, strict=True):
        tick.set(color=colour, weight="bold" if name in labels else "normal")
    left.set_ylim(max(places.values()) + 0.7, -1.6)
    style.add_legend(figure, _ratio_handles())
    return figure


def _draw_speedup(axes: Axes, record: Record, y: float, colour: str) -> None:
    if promise := ratio(record, "flops-promise"):
        axes.plot([promise.value] * 2, [y - 0.42, y + 0.42], ":", color=style.INK)
    if predicted := ratio(record, "predicted-speedup"):
        axes.plot(predicted.value, y + 0.2, color=colour, **style.PREDICTED)
    if measured := ratio(record, "speedup"):
        x, bars = measured.value, np.abs(_ends([measured]) - measured.value)
        axes.errorbar(x, y - 0.16, None, bars, color=colour, elinewidth=1.2, **LOOKS["speedup"])


def _compared(run: Run) -> list[Record]:
    return [r for r in run.records if ratio(r, "speedup") is not None]


def _ends(ratios: Sequence[Ratio]) -> Vector:
    """Limits of the intervals [2, ratios]; the ratio itself where there is no interval."""
    return np.array([[r.low or r.value for r in ratios], [r.high or r.value for r in ratios]])


def _draw_no_difference(span: Callable[..., Any], line: Callable[..., Any], run: Run) -> None:
    """Draw the line at a speedup of 1, and the band of speedups that are no difference."""
    margin = max(SAME_MARGIN, run.manifest.noise_floor or 0.0)
    span(1 - margin, 1 + margin, color=style.BAND, linewidth=0, zorder=0)
    line(1, color=style.MUTED, linewidth=0.8, zorder=1)


def _ratio_handles() -> list[Any]:
    titles = {
        "speedup": "measured, 95 % interval",
        "predicted-speedup": "predicted before the run",
        "flops-promise": "what FLOPs promise",
    }
    lines = [Line2D([], [], color=style.INK, label=titles[kind], **LOOKS[kind]) for kind in titles]
    return [*lines, Patch(color=style.BAND, label="no difference")]


GREY = "Grey: within 1 % (or the noise floor, if that is larger) of no difference."
DRAWINGS = (
    style.Drawing(
        "speedup",
        "Decode: speedup against batch",
        "Filled circles: total time of the baseline over total time of the router on the same "
        "steps, with 95 % intervals. Dashed: predicted before the run. Dotted: the speedup if time "
        f"were proportional to FLOPs, at the same level and context. {GREY}",
        speedup_by_batch,
    ),
    style.Drawing(
        "speedup-prefill-train",
        "Prefill and training: speedup",
        "Filled circles: measured, with 95 % intervals. Open diamonds: predicted before the run. "
        f"Dotted ticks: the speedup if time were proportional to FLOPs. {GREY}",
        speedup_elsewhere,
    ),
)
