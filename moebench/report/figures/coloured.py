"""Figure of a piece of text, each byte coloured by its experts."""

from collections.abc import Mapping

from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure

from moebench.records.router_use import ColouredText
from moebench.report.figures.style import WIDTH, shown
from moebench.report.pareto.coloured import LINE, colour, mean_k, scale, shown_lines

LINES = 22
"""Lines of each router's text that are drawn; the page has all."""
HEAD, FOOT = 1.7, 3.4
"""Lines above each text, and below the last."""
ADVANCE = 0.602
"""Width of a character of DejaVu Sans Mono over its size."""


def coloured_text(texts: Mapping[str, ColouredText]) -> Figure | str:
    """Figure of the same text for each router, coloured by mean k over layers."""
    if not texts:
        return "no text was kept with its experts"
    ends = scale(list(texts.values()))
    size = 72 * WIDTH / (LINE + 2) / ADVANCE
    drawn = {name: shown_lines(text)[:LINES] for name, text in texts.items()}
    row = 1.35 * size / 72
    rows = sum(len(lines) + HEAD for lines in drawn.values()) + FOOT
    figure = Figure(figsize=(WIDTH, rows * row))
    axes = figure.add_axes((1 / (LINE + 2), 0.0, LINE / (LINE + 2), 1.0))
    axes.set_axis_off()
    top = 0.0
    for name, lines in drawn.items():
        mean = sum(mean_k(texts[name])) / len(texts[name].text)
        top += HEAD
        title = f"{shown(name)} (k {mean:.2f} here)"
        axes.text(0, top - 0.45, title, va="bottom", fontsize=9, weight="bold")
        cells = [[to_rgb(colour(k, ends)) for _, k in line] for line in lines]
        filled = [line + [(1.0, 1.0, 1.0)] * (LINE - len(line)) for line in cells]
        extent = (0, LINE, top + len(lines), top)
        axes.imshow(filled, extent=extent, aspect="auto", interpolation="nearest")
        # One by one: the width of a whole line depends on the rounding of its characters' widths.
        for line, characters in enumerate(lines):
            for place, (character, _) in enumerate(characters):
                if character != " ":
                    at = (place + 0.5, top + line + 0.75, character)
                    axes.text(*at, ha="center", fontsize=size, family="DejaVu Sans Mono")
        top += len(lines)
    axes.set_xlim(0, LINE)
    axes.set_ylim(rows, 0)
    _add_legend(figure, ends, rows)
    return figure


def _add_legend(figure: Figure, ends: tuple[float, float], rows: float) -> None:
    """A bar from the least to the largest mean k, below the text."""
    bar = figure.add_axes((0.35, 1.7 / rows, 0.3, 0.7 / rows))
    colours = LinearSegmentedColormap.from_list("k", [colour(k, ends) for k in ends])
    bar.imshow([[i / 100 for i in range(101)]], extent=(*ends, 0, 1), aspect="auto", cmap=colours)
    bar.set_yticks([])
    bar.grid(visible=False)
    bar.set_title("mean k over layers", fontsize=8, weight="normal", loc="center", pad=3)
