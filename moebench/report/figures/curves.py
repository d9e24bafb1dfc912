"""Figure of the loss curves of all trainings, a panel for each with its seeds."""

from collections.abc import Sequence
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from moebench.report.figures.style import INK, OTHER_COLOURS, WIDTH, shown
from moebench.report.pareto.entries import Curve

SEED_COLOURS = ("#0072B2", "#D55E00", "#009E73", *OTHER_COLOURS)
COLUMNS = 3
ROW = 2.1
"""Height of a row of panels in inches."""
START = 0.1
"""Share of a training whose losses do not set the vertical axis: they fall from ln 256."""


def loss_curves(curves: Sequence[Curve]) -> Figure | str:
    """Figure of training loss (lines) and validation loss (dots) against tokens."""
    if not curves:
        return "no training kept its curve"
    titles = list(dict.fromkeys(curve.title for curve in curves))
    seeds = sorted({curve.seed for curve in curves})
    columns = min(COLUMNS, len(titles))
    rows = -(-len(titles) // columns)
    figure = Figure(figsize=(WIDTH, 0.6 + ROW * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, title in zip(grid, titles, strict=False):
        axes.set_title(fill(shown(title), 36), fontsize=8)
        own = [curve for curve in curves if curve.title == title]
        for curve in own:
            colour = SEED_COLOURS[seeds.index(curve.seed) % len(SEED_COLOURS)]
            axes.plot(curve.tokens, curve.losses_nats, color=colour, lw=0.8, alpha=0.6)
            if curve.validation:
                axes.plot(*zip(*curve.validation, strict=True), "o-", color=colour, ms=3, lw=0.8)
        _show_the_end(axes, own)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1e6:g}"))
    for axes in grid[len(titles) :]:
        axes.set_axis_off()
    figure.supxlabel("million tokens", fontsize=9)
    figure.supylabel("loss (nats/byte)", fontsize=9)
    handles = [
        Line2D([], [], color=SEED_COLOURS[i % len(SEED_COLOURS)], label=f"seed {seed}")
        for i, seed in enumerate(seeds)
    ]
    handles += [
        Line2D([], [], color=INK, lw=0.8, alpha=0.6, label="training"),
        Line2D([], [], color=INK, marker="o", ms=3, lw=0.8, label="validation"),
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles))
    return figure


def _show_the_end(axes: Axes, curves: Sequence[Curve]) -> None:
    """Set the vertical axis by what follows the first tenth, where losses fall steeply."""
    values = [
        loss
        for curve in curves
        for tokens, loss in (
            *zip(curve.tokens, curve.losses_nats, strict=True),
            *curve.validation,
        )
        if tokens >= START * curve.tokens[-1]
    ]
    if values and max(values) > min(values):
        room = 0.08 * (max(values) - min(values))
        axes.set_ylim(min(values) - room, max(values) + room)
