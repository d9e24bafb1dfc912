"""Figures of a trace: experts per token, expert skew, and distinct experts against batch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from moebench.records.trace import Trace
from moebench.report.figures.style import (
    INK,
    MUTED,
    WIDTH,
    add_legend,
    batch_axis,
    clear_axis,
    shown,
)
from moebench.report.figures.use import COLOURS
from moebench.report.traced import numbers
from moebench.report.traced.numbers import DistinctCurve, is_constant, mean_k

CURVES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"))
"""Colour and marker of each way in which steps are drawn."""
SHADES = "Blues"
CONSTANT = "every token of a layer runs the same number of experts"


def distinct_experts(curves: Sequence[DistinctCurve]) -> Figure:
    """Figure of distinct experts against the tokens of a step, recorded and independent."""
    figure = Figure(figsize=(WIDTH, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    handles = []
    for (colour, marker), curve in zip(CURVES, curves, strict=False):
        look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 4, "lw": 1.2}
        error = 2 * np.array(curve.error)
        left.errorbar(curve.tokens, curve.recorded, error, **look, elinewidth=0.8)
        expected = np.array(curve.independent)
        right.errorbar(
            curve.tokens, curve.recorded / expected, error / expected, **look, elinewidth=0.8
        )
        handles.append(Line2D([], [], label=curve.title, **look))
    longest = max(curves, key=lambda curve: curve.tokens[-1])
    left.plot(longest.tokens, longest.independent, color=INK, lw=1.0, ls="--")
    handles.append(Line2D([], [], color=INK, ls="--", lw=1.0, label="independent tokens"))
    for axes in (left, right):
        batch_axis(axes, longest.tokens)
    right.axhline(1, color=INK, lw=1.0, ls="--")
    left.set_ylim(bottom=0)
    left.set_ylabel("distinct experts of a layer")
    right.set_ylabel("recorded / independent")
    figure.supxlabel("tokens of a step", fontsize=9)
    add_legend(figure, handles)
    return figure


def k_by_layer(trace: Trace) -> Figure | str:
    """Figure of mean k in each layer, and of the shares of tokens with 0, 1, 2, ... experts."""
    if is_constant(trace) and np.ptp(mean_k(trace)) == 0:
        return CONSTANT
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    layers = np.array(trace.header.layers)
    left.plot(layers, mean_k(trace), "o-", color=CURVES[0][0], ms=5, lw=1.2)
    left.axhline(float(mean_k(trace).mean()), color=MUTED, lw=0.8, ls=":")
    left.set_ylim(bottom=0)
    left.set_ylabel("mean experts per token")
    below, most = np.zeros(len(layers)), int(trace.k.max())
    for k in range(most + 1):
        share = (trace.k == k).mean(axis=1)
        if share.any():
            shade = colormaps[SHADES](0.15 + 0.85 * k / max(1, most))
            right.bar(layers, share, bottom=below, color=shade, width=0.85, label=f"k = {k}")
        below += share
    right.set_ylabel("share of the tokens")
    right.yaxis.set_major_formatter(PercentFormatter(1.0))
    right.grid(axis="x", visible=False)
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.supxlabel("layer", fontsize=9)
    figure.legend(loc="outside right center", reverse=True)
    return figure


def k_by_class(trace: Trace) -> Figure | str:
    """Figure of mean k of each class of tokens in each layer."""
    if is_constant(trace):
        return CONSTANT
    found = numbers.k_by_class(trace)
    if not found:
        return "tokens were not classified"
    table = np.array([k for _, k in found.values()]).T
    table = np.vstack([table, table.mean(axis=0)])
    means = np.append(mean_k(trace), mean_k(trace).mean())
    over = table - means[:, None]
    most = 2.0 * max(float(np.abs(over).max()), 0.01)
    figure = Figure(figsize=(WIDTH, 1.2 + 0.28 * len(table)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(over, cmap=COLOURS, vmin=-most, vmax=most, aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        axes.annotate(
            f"{value:.2f}", (column, row), ha="center", va="center", size=7.5, color="black"
        )
    titles = [f"{shown(name)}\n{100 * share:.1f} %" for name, (share, _) in found.items()]
    axes.set_xticks(range(len(titles)), titles, fontsize=8 if len(titles) <= 6 else 6.5)
    axes.xaxis.tick_top()
    names = [f"layer {layer}" for layer in trace.header.layers]
    axes.set_yticks(range(len(table)), [*names, "mean"])
    for axis in ("x", "y"):
        clear_axis(axes, axis)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, label="k − the layer's mean", pad=0.01, aspect=20)
    bar.ax.set_ylim(-most / 2, most / 2)
    bar.outline.set_visible(False)
    return figure


def k_by_position(trace: Trace) -> Figure | str:
    """Figure of mean k by position in the sequence."""
    if is_constant(trace):
        return CONSTANT
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    axes = figure.subplots()
    middles, means = numbers.k_by_position(trace)
    for own in means:
        axes.plot(middles, own, color=MUTED, lw=0.6, alpha=0.6)
    axes.plot(middles, means.mean(axis=0), "o-", color=CURVES[0][0], ms=4, lw=1.4)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("position in the sequence (tokens)")
    axes.set_ylabel("experts per token")
    return figure


def expert_skew(trace: Trace) -> Figure:
    """Figure of the load of each expert in each layer, and of how much the busiest ones take."""
    counts = trace.tokens_per_expert
    even = np.maximum(1, counts.sum(axis=1, keepdims=True)) / counts.shape[1]
    load = counts / even
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
    scale = TwoSlopeNorm(1.0, 0.0, max(1.01, float(load.max())))
    image = left.imshow(load, cmap=COLOURS, norm=scale, aspect="auto")
    left.set_xlabel("expert")
    left.set_ylabel("layer")
    left.set_yticks(range(len(counts)), map(str, trace.header.layers))
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(counts) > 16:
        left.yaxis.set_major_locator(MaxNLocator(integer=True))
    for axis in ("x", "y"):
        clear_axis(left, axis)
    left.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=left, label="load / even load", pad=0.02, aspect=25)
    bar.outline.set_visible(False)
    shares = np.linspace(0, 1, counts.shape[1] + 1)
    busiest = np.cumsum(-np.sort(-load, axis=1), axis=1) / counts.shape[1]
    taken = np.pad(busiest, ((0, 0), (1, 0)))
    for own in taken:
        right.plot(shares, own, color=MUTED, lw=0.6, alpha=0.6)
    right.plot(shares, taken.mean(axis=0), color=CURVES[0][0], lw=1.6)
    right.plot((0, 1), (0, 1), color=INK, lw=1.0, ls="--")
    right.set_xlabel("busiest experts")
    right.set_ylabel("share of the assignments")
    for one in (right.xaxis, right.yaxis):
        one.set_major_formatter(PercentFormatter(1.0))
    return figure
