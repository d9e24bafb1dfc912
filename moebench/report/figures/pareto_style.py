"""The look of figures of quality: a colour and a marker for each router, and the loss axis."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from moebench.report.figures.style import BAND, INK, MUTED, shown
from moebench.report.pareto.entries import WITHIN_NATS, Entry, families

BASE_LOOK = ("#222222", "*")
LOOKS: Mapping[str, tuple[str, str]] = {
    "ada-k": ("#0072B2", "o"),
    "adamoe": ("#D55E00", "s"),
    "rmoe": ("#009E73", "^"),
    "fixed-k": ("#767676", "d"),
    "random-k": ("#A5AA99", "x"),
    "top-p": ("#CC79A7", "v"),
    "skip": ("#56B4E9", "<"),
    "entropy-k": ("#E69F00", ">"),
    "regression-k": ("#7F3C8D", "P"),
    "oea": ("#8C564B", "X"),
    "top-k": ("#444444", "h"),
}
"""Colour and marker of a router, the same in every figure."""
OTHER_LOOKS = (("#117733", "p"), ("#AA4499", "H"), ("#999933", "8"), ("#882255", "D"))
LINEAR_NATS = 0.005
"""The loss axis is linear to this difference and logarithmic beyond it."""
LOSS_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


def looks(entries: Sequence[Entry]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each family of a run."""
    others = itertools.cycle(OTHER_LOOKS)
    return {name: LOOKS.get(name) or next(others) for name in families(entries)}


def loss_axis(axes: Axes, entries: Sequence[Entry]) -> None:
    """Make the y axis that of loss differences, with the band that counts as no loss."""
    ends = [
        end
        for entry in entries
        if (d := entry.over_base) is not None
        for end in (d.value, d.low, d.high)
        if end is not None
    ]
    axes.set_yscale("symlog", linthresh=LINEAR_NATS, linscale=1.6)
    low, high = min([*ends, -0.002]), max([*ends, 0.004])
    axes.set_ylim(1.25 * low - 0.0005, 1.25 * high)
    inner = (-0.004, -0.002, 0.0, 0.002, 0.004)
    ticks = [*(-t for t in reversed(LOSS_TICKS)), *inner, *LOSS_TICKS]
    axes.yaxis.set_major_locator(FixedLocator([t for t in ticks if 1.25 * low <= t <= 1.25 * high]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: signed(value)))
    axes.axhspan(-WITHIN_NATS, WITHIN_NATS, color=BAND, zorder=0, linewidth=0)
    axes.axhline(0, color=INK, linewidth=0.8, zorder=1)


def signed(value: float) -> str:
    """A difference with its sign: "+0.002", "−0.01", "0"."""
    return f"{value:+g}".replace("-", "−") if value else "0"


def family_handles(entries: Sequence[Entry], is_filled: bool = True) -> list[Any]:
    """Legend entries: the base and a colour and marker for each family."""
    colour, marker = BASE_LOOK
    handles: list[Any] = []
    if any(entry.is_base for entry in entries):
        handles.append(
            Line2D([], [], marker=marker, ls="", color=colour, label="base", markersize=10)
        )
    for name, (colour, marker) in looks(entries).items():
        face = colour if is_filled else "white"
        handles.append(
            Line2D([], [], marker=marker, ls="", color=colour, mfc=face, label=shown(name))
        )
    return handles


def put_legend(figure: Figure, handles: Sequence[Any]) -> None:
    """Put the legend to the right of the panels, one router a line."""
    figure.legend(handles=list(handles), loc="outside right upper", handletextpad=0.4)


def note(axes: Axes, text: str) -> None:
    """Write a remark into the lower right corner of a panel."""
    axes.annotate(
        text, (0.99, 0.01), xycoords="axes fraction", ha="right", va="bottom", size=7, color=MUTED
    )
