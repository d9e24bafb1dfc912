"""Figures of speedup: measured with its interval, predicted, and what FLOPs promise."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from moebench.compare.pairs import SAME_MARGIN, corrected
from moebench.compare.rounds import MIN_ROUNDS
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
SOLID: Mapping[str, Any] = {"linewidth": 1.6}
FAINT: Mapping[str, Any] = {"linewidth": 0.8, "alpha": style.FAINT}
"""Look of a measured speedup with a verdict, and of one without."""


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
    axes.margins(y=0.1)  # room for numbers of rounds
    style.batch_axis(axes, batches)
    axes.set_xlim(batches[0] / 1.6, batches[-1] * 1.6)
    axes.yaxis.set_major_formatter("{x:g}×")
    style.add_legend(figure, _ratio_handles())
    return figure


def _draw_speedup_panel(axes: Axes, records: Sequence[Record], colour: str, run: Run) -> None:
    """Draw the cases of a level and router, which have a speedup, in order of batch."""
    _draw_no_difference(axes.axhspan, axes.axhline, run)
    x = np.array([r.case.workload.batch for r in records])
    for kind, ink in (("flops-promise", style.INK), ("predicted-speedup", colour)):
        points = [(b, p.value) for b, r in zip(x, records, strict=True) if (p := ratio(r, kind))]
        if points:
            axes.plot(*zip(*points, strict=True), color=ink, zorder=2, **LOOKS[kind])
    measured = [s for record in records if (s := ratio(record, "speedup"))]
    values, known = np.array([r.value for r in measured]), [has_verdict(r) for r in measured]
    for first in range(len(measured) - 1):
        both = slice(first, first + 2)
        look = SOLID if all(known[both]) else FAINT
        axes.plot(x[both], values[both], color=colour, **look)
    for place, speedup, record in zip(x, measured, records, strict=True):
        predicted = ratio(record, "predicted-speedup")
        is_lower = predicted is not None and speedup.value < predicted.value
        offset = (0, -13) if is_lower else (0, 6)  # away from the predicted one
        _draw_measured(axes, (place, speedup.value), speedup, colour, offset)


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
        _draw_measured(axes, (measured.value, y - 0.16), measured, colour, None)


def has_verdict(speedup: Ratio) -> bool:
    """Whether a speedup was found to be faster, slower or the same."""
    return speedup.verdict not in (None, "unclear")


def _draw_measured(
    axes: Axes,
    place: tuple[float, float],
    speedup: Ratio,
    colour: str,
    label_offset: tuple[int, int] | None,
) -> None:
    """Draw a speedup with its interval; faint without a verdict, and its rounds where too few.

    It stands on the y axis if its label has an offset, else on the x axis.
    """
    is_along_x = label_offset is None
    look = SOLID if has_verdict(speedup) else FAINT
    if speedup.low is not None and speedup.high is not None:
        bar = [[speedup.value - speedup.low], [speedup.high - speedup.value]]
        axes.errorbar(
            *place,
            None if is_along_x else bar,
            bar if is_along_x else None,
            fmt="none",
            ecolor=colour,
            elinewidth=1.2,
            zorder=3,
        )
    axes.plot(*place, color=colour, zorder=4, **{**LOOKS["speedup"], **look})
    if speedup.n < MIN_ROUNDS:
        rounds = f"{speedup.n} round{'s' * (speedup.n > 1)}"
        end = speedup.high or speedup.value
        axes.annotate(
            rounds,
            (end, place[1]) if is_along_x else place,
            xytext=label_offset or (6, -2),
            textcoords="offset points",
            ha="left" if is_along_x else "center",
            size=6,
            color=style.MUTED,
        )


def _compared(run: Run) -> list[Record]:
    """Records with a speedup, its verdict corrected for the number of rows as in the table."""
    return [r for r in corrected(run.records) if ratio(r, "speedup") is not None]


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
    look = {**LOOKS["speedup"], **FAINT}
    lines.insert(1, Line2D([], [], color=style.INK, label="measured, no verdict", **look))
    return [*lines, Patch(color=style.BAND, label="no difference")]


GREY = "Grey: within 1 % (or the noise floor, if that is larger) of no difference."
DRAWINGS = (
    style.Drawing(
        "speedup",
        "Decode: speedup against batch",
        "Filled circles: total time of the baseline over total time of the router on the same "
        "steps, with 95 % intervals; faint where there is no verdict. Dashed: predicted before "
        "the run. Dotted: the speedup if time "
        f"were proportional to FLOPs, at the same level and context. {GREY}",
        speedup_by_batch,
    ),
    style.Drawing(
        "speedup-prefill-train",
        "Prefill and training: speedup",
        "Filled circles: measured, with 95 % intervals; faint where there is no verdict. Open "
        "diamonds: predicted before the run. "
        f"Dotted ticks: the speedup if time were proportional to FLOPs. {GREY}",
        speedup_elsewhere,
    ),
)
