"""Figure of predicted over measured values, a panel for each kernel.

A trend over tokens points to a missing term of the model, one cloud is noise, and two clouds are
variants of the kernel between which the model does not distinguish.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from moebench.compare.intervals import Vector
from moebench.report.figures.style import BAND, INK, MUTED, png, styled

COLUMNS = 2
PANEL = (4.4, 2.5)
"""Width and height of one kernel's panel in inches."""
MOST_POINTS = 1500
"""Points drawn in a panel, evenly picked: more would only make the file larger."""
TITLE = 50
"""Characters shown of a kernel's name; a longer name loses its middle."""
SHOWN = (0.5, 2.0)
"""Range of the vertical axis; points beyond it are drawn on its edge."""
WITHIN = 0.10
"""Half-width of the grey band around equality."""


def draw_accuracy(
    labels: Sequence[str], num_tokens: Vector, ratios: Vector, title: str, x: str
) -> bytes:
    """A PNG of predicted over measured values against tokens; each label has its panel."""
    names = sorted(set(labels))
    lines = -(-len(names) // COLUMNS)
    with styled():
        figure = Figure(figsize=(COLUMNS * PANEL[0], lines * PANEL[1] + 0.6), layout="constrained")
        axes = figure.subplots(lines, COLUMNS, squeeze=False, sharex=True, sharey=True).ravel()
        for axis, name in zip(axes, names, strict=False):
            here = np.array(labels) == name
            tokens, ratio = num_tokens[here], ratios[here]
            axis.axhspan(1 / (1 + WITHIN), 1 + WITHIN, color=BAND, zorder=0)
            few = np.linspace(0, len(tokens) - 1, min(len(tokens), MOST_POINTS)).astype(int)
            points = np.clip(ratio[few], *SHOWN)
            axis.plot(tokens[few], points, ".", color="#0072B2", alpha=0.25, markersize=3, mew=0)
            grid = np.unique(tokens)
            middle = [np.median(ratio[tokens == value]) for value in grid]
            ends = [np.percentile(ratio[tokens == value], [5, 95]) for value in grid]
            axis.plot(grid, middle, color=INK, linewidth=1.3)
            axis.plot(grid, ends, color=MUTED, linewidth=0.8)
            error = 100 * np.abs(ratio - 1)
            shown = name if len(name) <= TITLE else f"{name[:20]}...{name[-(TITLE - 23) :]}"
            axis.set_title(f"{shown}: {error.mean():.1f} %", fontsize=8)
            axis.set_xscale("log", base=2)
            axis.set_yscale("log", base=2)
            axis.set_ylim(*SHOWN)
            axis.set_yticks([0.5, 0.7, 1.0, 1.4, 2.0], ["0.5", "0.7", "1", "1.4", "2"])
            axis.xaxis.set_major_locator(LogLocator(base=4.0, numticks=8))
            axis.xaxis.set_major_formatter(EngFormatter(places=0, sep=""))
            axis.xaxis.set_minor_locator(NullLocator())
        for axis in axes[: len(names)][-COLUMNS:]:
            axis.xaxis.set_tick_params(labelbottom=True)
        for axis in axes[len(names) :]:
            axis.set_axis_off()
        explained = f"{title}: predicted over measured (line: median, grey: 5 and 95 %)"
        figure.suptitle(explained, fontsize=9)
        figure.supxlabel(x, fontsize=9)
        return png(figure, dots_per_inch=110)
