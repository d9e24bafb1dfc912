"""Figures of what routers do: experts by layer, token and position; load; distinct experts."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from moebench.records.router_use import LayerUse
from moebench.report.figures.pareto_style import BASE_LOOK, looks, put_legend
from moebench.report.figures.style import INK, MUTED, WIDTH, batch_axis, clear_axis, shown
from moebench.report.notation import DASH
from moebench.report.pareto.entries import (
    Entry,
    mean_over_layers,
    representatives,
)

COLOURS = "PuOr_r"
"""Colour map from violet over white to orange, which colour-blind people can tell apart."""
CONSTANT = "every router runs the same number of experts for every token"


def k_by_layer(entries: Sequence[Entry]) -> Figure | str:
    """Figure of mean k in each layer, a row for each router whose k varies."""
    own = [e for e in representatives(entries) if _differs(e.use.layers)]
    if not own:
        return "every router runs the same mean k in all layers"
    table = [[layer.mean_k for layer in entry.use.layers] for entry in own]
    return _heat(own, table, [f"layer {i}" for i in range(len(table[0]))])


def _differs(layers: Sequence[LayerUse]) -> bool:
    return len({round(layer.mean_k, 3) for layer in layers}) > 1


def k_by_class(entries: Sequence[Entry]) -> Figure | str:
    """Figure of mean k of each class of tokens, a row for each router whose k varies."""
    own = [e for e in representatives(entries) if e.use.class_shares and not e.is_constant]
    if not own:
        has_classes = any(entry.use.class_shares for entry in entries)
        return CONSTANT if has_classes else "the text was not classified"
    names = list(dict.fromkeys(name for entry in own for name in entry.use.class_shares))
    table = [[_class_k(entry, name) for name in names] for entry in own]
    shares = own[0].use.class_shares
    titles = [f"{name}\n{100 * shares.get(name, 0.0):.0f} %" for name in names]
    return _heat(own, table, titles)


def _class_k(entry: Entry, name: str) -> float:
    values = [layer.mean_k_by_class.get(name, math.nan) for layer in entry.use.layers]
    return float(np.mean(values))


def _heat(entries: Sequence[Entry], table: Sequence[Sequence[float]], names: list[str]) -> Figure:
    """A table of mean k; colours say how far each is from the router's own mean."""
    figure = Figure(figsize=(WIDTH, 1.0 + 0.3 * len(entries)), layout="constrained")
    axes = figure.subplots()
    values = np.array(table)
    over = values - np.array([[entry.use.mean_k] for entry in entries])
    # Pale enough for black numbers.
    most = 2.0 * max(float(np.nanmax(np.abs(over))), 0.01)
    image = axes.imshow(over, cmap=COLOURS, vmin=-most, vmax=most, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        text = DASH if math.isnan(value) else f"{value:.2f}"
        axes.annotate(text, (column, row), ha="center", va="center", size=7.5, color="black")
    axes.set_yticks(range(len(entries)), [_with_k(entry) for entry in entries])
    # Long names of classes would run into each other.
    axes.set_xticks(range(len(names)), names, fontsize=8 if len(names) <= 6 else 6.5)
    axes.xaxis.tick_top()
    for axis in ("x", "y"):
        clear_axis(axes, axis)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, label="k − the router's mean", pad=0.01, aspect=20)
    bar.ax.set_ylim(-most / 2, most / 2)
    bar.outline.set_visible(False)
    return figure


def _with_k(entry: Entry) -> str:
    return f"{shown(entry.title)} (k {entry.mean_k:.2f})"


def k_by_place(entries: Sequence[Entry]) -> Figure | str:
    """Figure of mean k by position in the window (left) and by the window's loss (right)."""
    own = [entry for entry in representatives(entries) if not entry.is_constant]
    if not own:
        return CONSTANT
    figure = Figure(figsize=(WIDTH, max(3.6, 0.24 * len(own))), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    styles = looks(entries)
    for entry in own:
        colour, marker = BASE_LOOK if entry.is_base else styles[entry.family]
        look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 4, "lw": 1.2}
        by_position = mean_over_layers([layer.mean_k_by_position for layer in entry.use.layers])
        parts = (np.arange(len(by_position)) + 0.5) / len(by_position)
        left.plot(parts * entry.quality.window_bytes, by_position, **look)
        if entry.use.against_loss is not None:
            groups = entry.use.against_loss.mean_k_by_loss
            right.plot(range(1, len(groups) + 1), groups, **look)
    left.set_xlabel("position in the window (bytes)")
    right.set_xlabel("windows by loss: lowest to highest group")
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set_ylabel("mean k")
    put_legend(figure, _line_handles(own, entries))
    return figure


def _line_handles(own: Sequence[Entry], entries: Sequence[Entry]) -> list[Any]:
    """A legend entry for each line, with the operating point that it shows."""
    styles = looks(entries)
    handles = []
    for entry in own:
        colour, marker = BASE_LOOK if entry.is_base else styles[entry.family]
        look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 4, "lw": 1.2}
        handles.append(Line2D([], [], label=_with_k(entry), **look))
    return handles


def expert_load(entries: Sequence[Entry]) -> Figure | str:
    """Figure of the load of each expert in each layer, a panel for each router."""
    own = representatives(entries)
    columns = 4
    rows = -(-len(own) // columns)
    loads = [[_over_even(layer) for layer in entry.use.layers] for entry in own]
    scale = TwoSlopeNorm(1.0, 0.0, max(1.01, np.max(loads)))
    figure = Figure(figsize=(WIDTH, 0.5 + 1.55 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axes, entry, load in zip(grid, own, loads, strict=False):
        axes.imshow(load, cmap=COLOURS, norm=scale, aspect="auto")
        axes.set_title(shown(entry.title), fontsize=8)
        clear_axis(axes, "x")
        clear_axis(axes, "y")
        axes.spines[:].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    for axes in grid[len(own) :]:
        axes.set_axis_off()
    for axes in grid[max(0, len(own) - columns) : len(own)]:
        axes.xaxis.set_tick_params(labelbottom=True)
    figure.supxlabel("expert", fontsize=9)
    figure.supylabel("layer", fontsize=9)
    image = grid[0].images[0]
    bar = figure.colorbar(image, ax=list(grid), label="load / even load", pad=0.01, aspect=30)
    bar.outline.set_visible(False)
    return figure


def _over_even(layer: LayerUse) -> list[float]:
    """Load of each expert over that of all experts when loaded alike."""
    return [share * len(layer.expert_shares) for share in layer.expert_shares]


def distinct_experts(entries: Sequence[Entry]) -> Figure | str:
    """Figure of distinct experts a layer against the tokens of a decode step."""
    own = [e for e in representatives(entries) if all(layer.distinct for layer in e.use.layers)]
    if not own:
        return "distinct experts were not counted"
    figure = Figure(figsize=(WIDTH, max(3.6, 0.24 * len(own))), layout="constrained")
    left, right = figure.subplots(1, 2)
    styles = looks(entries)
    for entry in own:
        colour, marker = BASE_LOOK if entry.is_base else styles[entry.family]
        batches = [each.batch_tokens for each in entry.use.layers[0].distinct]
        measured = mean_over_layers(
            [[each.measured_experts for each in layer.distinct] for layer in entry.use.layers]
        )
        expected = mean_over_layers(
            [[each.independent_experts for each in layer.distinct] for layer in entry.use.layers]
        )
        left.plot(batches, measured, color=colour, marker=marker, markersize=4, lw=1.2)
        left.plot(batches, expected, color=colour, lw=0.9, ls="--", alpha=0.7)
        ratio = [a / b for a, b in zip(measured, expected, strict=True)]
        right.plot(batches, ratio, color=colour, marker=marker, markersize=4, lw=1.2)
    for axes in (left, right):
        batch_axis(axes, batches)
    right.axhline(1, color=INK, lw=0.8)
    left.set_ylabel("distinct experts a layer")
    right.set_ylabel("measured / independent tokens")
    figure.supxlabel("tokens a decode step", fontsize=9)
    handles = _line_handles(own, entries)
    handles.append(Line2D([], [], color=MUTED, ls="--", label="independent tokens"))
    put_legend(figure, handles)
    return figure
