"""Figure of a run of expert backends: times over the baseline's, and savings in time."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moebench.records.experts_run import ExpertsResult
from moebench.report.backend_goals import Saving, savings
from moebench.report.backend_rows import backend_rows, drawn_phase
from moebench.report.figures.style import INK, MUTED, OTHER_COLOURS, PAPER_COLOURS
from moebench.routers.synthetic.mixes import COMPARED_WITH

MARKS = {"geometric": ("o", "#0072B2"), "ada-k": ("s", "#D55E00")}


def backends_figure(cells: Sequence[ExpertsResult], baseline: str) -> Figure:
    """Figure of every backend's time over the baseline's, and of time saved against bound saved."""
    kind = "fixed", drawn_phase(cells)
    rows = [row for row in backend_rows(cells) if (row.mix, row.cell.phase) == kind]
    places = list(dict.fromkeys((r.cell.dtype, r.cell.shape, r.cell.num_tokens) for r in rows))
    height = max(3.6, 0.27 * len(places) + 1.4)
    figure = Figure(figsize=(9.0, height), layout="constrained")
    saved = [saving for saving in savings(cells) if saving.is_promised]
    panels = figure.subplots(1, 2, width_ratios=(1.35, 1)) if saved else [figure.subplots()]
    left = panels[0]
    names = list(dict.fromkeys(row.backend for row in rows if row.ratio is not None))
    colours = dict(zip(names, (*PAPER_COLOURS.values(), *OTHER_COLOURS), strict=False))
    for row, ratio in ((row, row.ratio) for row in rows if row.ratio is not None):
        place = places.index((row.cell.dtype, row.cell.shape, row.cell.num_tokens))
        y = place + 0.17 * (names.index(row.backend) - (len(names) - 1) / 2)
        ends = (ratio.low or ratio.value, ratio.high or ratio.value)
        left.plot(ends, (y, y), color=colours[row.backend], linewidth=1.0)
        left.plot(ratio.value, y, "o", markersize=4, color=colours[row.backend])
    left.axvline(1, color=INK, linewidth=0.9)
    left.set_xscale("log", base=2)
    most = max((row.ratio.value for row in rows if row.ratio is not None), default=1.0)
    ticks = [2.0**power for power in range(-1, max(3, math.ceil(math.log2(most))) + 1)]
    left.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    left.minorticks_off()
    has_several_types = len({dtype for dtype, _, _ in places}) > 1
    names_of_places = [f"{s}, {n}" + f", {d}" * has_several_types for d, s, n in places]
    left.set_yticks(range(len(places)), names_of_places)
    left.invert_yaxis()
    left.set_xlabel(f"time over that of {baseline} (above 1: slower)")
    left.set_title("Fixed k, by shape and tokens")
    for name in names:
        left.plot([], [], "o", color=colours[name], markersize=4, label=name)
    if names:
        figure.legend(loc="outside upper center", ncols=len(names))
    if saved:
        panels[1].set_title(f"Fewer assignments ({baseline})")
        _draw_savings(panels[1], saved)
    return figure


def _draw_savings(axes: Axes, promised: Sequence[Saving]) -> None:
    for mix in dict.fromkeys(saving.mix for saving in promised):
        own = [(saving.bound, saving.time.value) for saving in promised if saving.mix == mix]
        mark, colour = MARKS[mix]
        label = f"{mix} against {COMPARED_WITH[mix]}"
        axes.plot(*zip(*own, strict=True), mark, color=colour, markersize=5, label=label)
    axes.plot((1, 4.4), (1, 4.4), color=MUTED, linewidth=0.9)
    axes.plot((1, 4.4), (0.9, 0.9 * 4.4), color=MUTED, linewidth=0.9, linestyle=":")
    axes.set_xlabel("saving in the bound")
    axes.set_ylabel("saving in time")
    axes.text(2.6, 2.2, "0.9 of the bound's", color=MUTED, ha="left", va="top", fontsize=8)
    axes.legend(loc="upper left")
