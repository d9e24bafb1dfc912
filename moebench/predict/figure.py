"""Figure of predicted speedup over batch, with its interval and what FLOPs promise."""

from collections.abc import Mapping

from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from moebench.predict.cells import Speedups
from moebench.report.figures import style

MOST_TICKS = 14


def draw_forecasts(cases: Mapping[str, Speedups], title: str, footnote: str) -> Figure:
    """Figure of predicted speedups of labelled cases over the model's own top-k at every batch."""
    colours = _colours(cases)
    with style.styled():
        figure = Figure(figsize=(style.WIDTH, 4.6), layout="constrained")
        axes = figure.subplots()
        axes.axhline(1.0, color=style.BASELINE_COLOUR, linewidth=1.0)
        handles: list[Artist] = []
        has_interval = False
        batches = sorted({row.batch for rows in cases.values() for row in rows})
        for label, rows in cases.items():
            x, colour = [row.batch for row in rows], colours[label]
            ends = [(row.low, row.high) for row in rows if row.low and row.high]
            if ends:
                low, high = zip(*ends, strict=True)
                axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
            has_interval |= bool(ends)
            values = [row.value for row in rows]
            handles += axes.plot(x, values, "--o", label=label, color=colour, mfc="white", ms=4.5)
            axes.plot(x, [row.flops_promise for row in rows], ":", color=colour)
        style.batch_axis(axes, batches[:: -(-len(batches) // MOST_TICKS)])
        axes.yaxis.set_major_formatter("{x:.2f}×")
        axes.set_xlabel("batch, sequences")
        axes.set_ylabel("speedup over the model's top-k")
        axes.set_title(title, wrap=True)
        if has_interval:
            handles.append(Patch(color=style.MUTED, alpha=0.3, label="90 % interval"))
        handles.append(Line2D([], [], color=style.INK, ls=":", label="what FLOPs promise"))
        style.add_legend(figure, handles)
        figure.supxlabel(footnote, fontsize=7.5, color=style.MUTED, x=0.01, ha="left")
    return figure


def _colours(cases: Mapping[str, Speedups]) -> dict[str, str]:
    """Colour of each case: its router's if all routers differ, else the next of the palette."""
    routers = {label: rows[0].router for label, rows in cases.items()}
    if len({*routers.values()}) == len(routers):
        spare, known = iter(style.OTHER_COLOURS), style.PAPER_COLOURS
        return {label: known.get(r) or next(spare, style.MUTED) for label, r in routers.items()}
    palette = (*style.PAPER_COLOURS.values(), *style.OTHER_COLOURS)
    return {label: palette[i % len(palette)] for i, label in enumerate(cases)}
