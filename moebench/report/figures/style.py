"""The look that all figures share: colours, panels, marks, axes, legends.

Colours are those of Okabe and Ito, which people with colour-blindness can tell apart; a router
has the same one in every figure. Measured values are filled, predicted ones open, dashed or
hatched, and what FLOPs promise is dotted.
"""

import io
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from moebench import terminal
from moebench.compare.rounds import MIN_ROUNDS
from moebench.files import not_written
from moebench.records.record import Record
from moebench.records.run import Run
from moebench.report.cases import levels_of, measurement_of, titles_of
from moebench.report.notation import level_title
from moebench.units import Kind, printable, text

NOTHING = "no case was measured"
INK = "#222222"
MUTED = "#767676"
BAND = "#e4e4e4"
FAINT = 0.3
"""Opacity of a point without a verdict."""
BASELINE_COLOUR = "#444444"
FLOOR_COLOUR = "#9a9a9a"
PAPER_COLOURS = {"ada-k": "#0072B2", "adamoe": "#D55E00", "rmoe": "#009E73"}
OTHER_COLOURS = ("#CC79A7", "#56B4E9", "#E69F00", "#7F3C8D", "#A5AA99")
PHASE_MARKERS = {"decode": "o", "prefill": "s", "train": "^"}
PREDICTED: Mapping[str, Any] = {"marker": "D", "markersize": 4, "markerfacecolor": "white"}
"""Marker of a predicted value."""

FORMATS = (".png", ".pdf", ".svg")
"""File names that --plot accepts."""
WIDTH = 9.0
"""Width of a figure in inches; at 160 dots an inch it has twice the width of a README's column."""
LEGEND_HEIGHT = 0.9
"""Inches of a figure's height for its legend and its outer labels."""
STYLE_SHEET = Path(__file__).with_name("moebench.mplstyle")


def styled() -> AbstractContextManager[None]:
    """A context in which figures are drawn and saved in this style."""
    return mpl.rc_context(fname=STYLE_SHEET)


def png(figure: Figure, dots_per_inch: float | None = None) -> bytes:
    """The figure as a PNG file without the version of matplotlib: equal records, equal files."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dots_per_inch or "figure", metadata={"Software": None})
    return buffer.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Write the figure in the format that the file's name asks for; see `check_format`."""
    try:
        figure.savefig(path)
    except OSError as error:
        raise not_written(f"--plot {path}", error) from error
    terminal.say(f"drawn: {path}")


def check_format(path: Path) -> None:
    """Refuse a file name before anything is computed."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"--plot: found {str(path)!r}, expected a name in {', '.join(FORMATS)}")


@dataclass(frozen=True)
class Drawing:
    """How a figure is made; `draw` returns the reason if the records do not allow it."""

    name: str
    title: str
    explanation: str
    """What the marks mean; the caption adds what the figure rests on."""
    draw: Callable[[Run], Figure | str]


def panels(
    rows: int, columns: int, height: float, share_x: bool = True
) -> tuple[Figure, list[list[Axes]]]:
    """A figure and its panels, which share their y axis; `height` is that of a row, in inches."""
    figure = Figure(figsize=(WIDTH, LEGEND_HEIGHT + rows * height), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=share_x, sharey=True, squeeze=False)
    return figure, [list(row) for row in grid]


def level_panels(
    records: Sequence[Record], height: float, stacked: bool = False
) -> tuple[Figure, list[tuple[Axes, list[Record]]]]:
    """A figure with one titled panel a level, and the records of each; `height` is in inches."""
    levels = levels_of(records)
    figure, grid = panels(*((len(levels), 1) if stacked else (1, len(levels))), height)
    result = []
    for axes, level in zip((axes for row in grid for axes in row), levels, strict=True):
        axes.set_title(level_title(level))
        result.append((axes, [r for r in records if r.case.workload.level == level]))
    return figure, result


def mark_case(axes: Axes, x: float, y: float, record: Record, colour: str) -> None:
    """Draw a case as a point whose marker tells the phase; faint where it had too few rounds."""
    marker = PHASE_MARKERS[record.case.workload.phase]
    alpha = FAINT if has_few_rounds(record) else 0.85
    axes.plot(x, y, marker, color=colour, ms=5.5, alpha=alpha, mec="white", mew=0.5)


def has_few_rounds(record: Record) -> bool:
    """Whether a case had too few rounds for a verdict."""
    return len({sample.round for sample in measurement_of(record).samples}) < MIN_ROUNDS


def clear_axis(axes: Axes, axis: Literal["x", "y"]) -> None:
    """Remove grid lines and tick marks from an axis of names."""
    axes.grid(axis=axis, visible=False)
    axes.tick_params(axis=axis, length=0)


def batch_axis(axes: Axes, batches: Sequence[float]) -> None:
    """Make the x axis logarithmic, with a tick at each of these batches."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(batches))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_locator(NullLocator())


def label_logarithmic(axis: Axis, kind: Kind) -> None:
    """Set ticks with units: at 1, 2 and 5 of up to two decades, at 1 of more decades."""
    low, high = axis.get_view_interval()
    few = high <= 150 * low
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value, kind, 1)))
    axis.set_minor_locator(NullLocator())


def router_colours(run: Run) -> Mapping[str, str]:
    """One colour a router title: greys for the baseline and its fixed-k relatives."""
    routers = {r.case.router.title: r.case.router.name for r in (*run.predictions, *run.records)}
    colours: dict[str, str] = {}
    others = itertools.cycle(OTHER_COLOURS)
    for title, name in routers.items():
        if title == run.manifest.baseline:
            colours[title] = BASELINE_COLOUR
        elif name == routers.get(run.manifest.baseline) and FLOOR_COLOUR not in colours.values():
            colours[title] = FLOOR_COLOUR
        else:
            colours[title] = PAPER_COLOURS.get(title) or next(others)
    return colours


def shown(title: str) -> str:
    """A title as matplotlib shows it: it hides what starts with "_" from a legend."""
    return printable(f" {title}" if title.startswith("_") else title)


def case_handles(run: Run, records: Sequence[Record]) -> list[Any]:
    """Legend entries for the colours of the routers and the markers of the phases."""
    colours = router_colours(run)
    phases = dict.fromkeys(r.case.workload.phase for r in records)
    looks = [("o", shown(title), colours[title], "auto") for title in titles_of(records)]
    looks += [(PHASE_MARKERS[p], p, MUTED, "white") for p in phases]
    handles = [
        Line2D([], [], marker=marker, ls="", label=name, color=colour, mfc=face)
        for marker, name, colour, face in looks
    ]
    if any(map(has_few_rounds, records)):
        name = f"faint: fewer than {MIN_ROUNDS} rounds"
        handles.append(Line2D([], [], marker="o", ls="", label=name, color=INK, alpha=FAINT))
    return handles


def add_legend(figure: Figure, handles: Sequence[Any]) -> None:
    """Add a legend above the panels, in as many lines as it needs, read line by line."""
    inches = sum(0.62 + 0.078 * len(str(handle.get_label())) for handle in handles)
    lines = math.ceil(inches / WIDTH)
    columns = math.ceil(len(handles) / lines)
    # matplotlib fills a legend column by column.
    in_order = [handles[i] for c in range(columns) for i in range(c, len(handles), columns)]
    spaces: Mapping[str, Any] = {"columnspacing": 1.1, "handletextpad": 0.4, "handlelength": 1.6}
    figure.legend(handles=in_order, loc="outside upper left", ncols=columns, **spaces)
