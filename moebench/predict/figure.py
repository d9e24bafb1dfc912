"""Figure of predicted speedup over batch, with its interval and what FLOPs promise."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from moebench.report.figures import style

FORMATS = (".png", ".pdf", ".svg")
MOST_TICKS = 14


@dataclass(frozen=True)
class SpeedupCurve:
    """Predicted speedup of one router over the model's own top-k, by batch."""

    router: str
    batches: Sequence[int]
    values: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    """Upper ends of the 90 % intervals."""
    flops_promise: Sequence[float]


def draw_forecasts(curves: Mapping[str, SpeedupCurve], title: str, footnote: str) -> Figure:
    """Figure of predicted speedups over the model's own top-k at every batch.

    Args:
        curves: one a case, by its label.
        title: what all cases share.
        footnote: what the prediction rests on.
    """
    colours = _colours(curves)
    with style.styled():
        figure = Figure(figsize=(style.WIDTH, 4.6), layout="constrained")
        axes = figure.subplots()
        axes.axhline(1.0, color=style.BASELINE_COLOUR, linewidth=1.0)
        batches = sorted({batch for curve in curves.values() for batch in curve.batches})
        for label, curve in curves.items():
            x, colour = curve.batches, colours[label]
            axes.fill_between(x, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)
            axes.plot(x, curve.values, "--o", color=colour, mfc="white", markersize=4.5)
            axes.plot(x, curve.flops_promise, ":", color=colour)
        style.batch_axis(axes, batches[:: -(-len(batches) // MOST_TICKS)])
        axes.yaxis.set_major_formatter("{x:.2f}×")
        axes.set_xlabel("batch, sequences")
        axes.set_ylabel("speedup over the model's top-k")
        axes.set_title(title, wrap=True)
        handles = [
            *(
                Line2D([], [], color=colours[label], linestyle="--", marker="o", mfc="white",
                       label=label)
                for label in curves
            ),
            Patch(color=style.MUTED, alpha=0.3, label="90 % interval"),
            Line2D([], [], color=style.INK, linestyle=":", label="what FLOPs promise"),
        ]  # fmt: skip
        style.add_legend(figure, handles)
        figure.supxlabel(footnote, fontsize=7.5, color=style.MUTED, x=0.01, ha="left")
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write the figure in the format that the file's name asks for.

    Raises:
        ValueError: a format that is none of `FORMATS`, or a file that cannot be written.
    """
    check_format(path)
    try:
        figure.savefig(path)
    except OSError as error:
        raise ValueError(f"--plot {path}: cannot be written: {error.strerror}") from error


def check_format(path: Path) -> None:
    """Refuse a file name before anything is computed."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"--plot: found {str(path)!r}, expected a name in {', '.join(FORMATS)}")


def _colours(curves: Mapping[str, SpeedupCurve]) -> dict[str, str]:
    """Colour of each case: its router's if all routers differ, else the next of the palette."""
    routers = [curve.router for curve in curves.values()]
    if len(set(routers)) == len(routers):
        spare = iter(style.OTHER_COLOURS)
        return {
            label: style.PAPER_COLOURS.get(router) or next(spare, style.MUTED)
            for label, router in zip(curves, routers, strict=True)
        }
    palette = (*style.PAPER_COLOURS.values(), *style.OTHER_COLOURS)
    return {label: palette[i % len(palette)] for i, label in enumerate(curves)}
