"""Figures of loss against what a router saves: experts, measured time, predicted time."""

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from moebench.report.figures.pareto_style import (
    BASE_LOOK,
    family_handles,
    looks,
    loss_axis,
    put_legend,
)
from moebench.report.figures.style import INK, WIDTH
from moebench.report.notation import percent
from moebench.report.pareto.entries import Entry, PredictedCase, families, frontier

LOSS = "test loss − base (nats/byte)"


def loss_against_k(entries: Sequence[Entry]) -> Figure | str:
    """Figure of the difference of loss against mean k, all routers, with intervals."""
    if not any(entry.over_base for entry in entries):
        return "no router was compared with the base"
    figure = Figure(figsize=(WIDTH, 5.4), layout="constrained")
    axes = figure.subplots()
    _points(axes, entries, [entry.mean_k for entry in entries], is_filled=True)
    loss_axis(axes, entries)
    axes.set_ylabel(LOSS)
    axes.set_xlabel("mean k: routed experts a token and layer")
    above = axes.secondary_xaxis("top", functions=_saved_scale(entries[0].base_k))
    above.xaxis.set_major_formatter(FuncFormatter(lambda s, _: percent(s).replace(".0 ", " ")))
    above.set_xlabel("assignments saved against the base")
    put_legend(figure, family_handles(entries))
    return figure


def _saved_scale(base_k: float) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """From mean k to the share of the base's assignments saved, and back; numbers or arrays."""
    return (lambda k: 1 - k / base_k), (lambda saved: base_k * (1 - saved))


def loss_against_time(entries: Sequence[Entry]) -> Figure | str:
    """Figure of the difference of loss against measured time, a panel for each decode batch."""
    cells = dict.fromkeys(c for e in entries for c in e.latency_ratios if c.phase == "decode")
    if not cells:
        reasons = dict.fromkeys(why for e in entries for why in e.latency_missing.values())
        return "; ".join(reasons) or "no latency was measured"
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    grid = figure.subplots(1, len(cells), sharey=True, squeeze=False)[0]
    for axes, cell in zip(grid, sorted(cells, key=lambda c: c.batch), strict=True):
        own = [entry for entry in entries if cell in entry.latency_ratios]
        ratios = [entry.latency_ratios[cell] for entry in own]
        _points(axes, own, [ratio.value for ratio in ratios], is_filled=True)
        for entry, ratio in zip(own, ratios, strict=True):
            if ratio.low is not None and ratio.high is not None and entry.over_base:
                ends = [[ratio.value - ratio.low], [ratio.high - ratio.value]]
                colour = looks(entries)[entry.family][0]
                axes.errorbar(
                    ratio.value, entry.over_base.value, xerr=ends, color=colour, lw=0.8, alpha=0.6
                )
        axes.set_title(cell.title)
        axes.axvline(1, color=INK, linewidth=0.8)
    _finish(figure, grid, entries, "measured time / that of the base")
    put_legend(figure, family_handles(entries))
    return figure


def loss_against_prediction(entries: Sequence[Entry], model: str) -> Figure | str:
    """Figure of the difference of loss against a model's predicted time.

    Hardware goes down, batches across.
    """
    found = dict.fromkeys(case for entry in entries for case in entry.predicted_ratios)
    cases = [case for case in found if case.model == model]
    if not cases:
        missing = [(case, why) for e in entries for case, why in e.predicted_missing.items()]
        return "; ".join(dict.fromkeys(why for case, why in missing if case.model == model))
    rows = list(dict.fromkeys(case.hardware for case in cases))
    columns = sorted({case.batch for case in cases})
    figure = Figure(figsize=(WIDTH, 0.8 + 3.6 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), len(columns), sharey=True, squeeze=False)
    for row, hardware in zip(grid, rows, strict=True):
        for axes, batch in zip(row, columns, strict=True):
            case = PredictedCase(model, hardware, batch)
            own = [entry for entry in entries if case in entry.predicted_ratios]
            _points(axes, own, [entry.predicted_ratios[case] for entry in own], is_filled=False)
            axes.set_title(f"{hardware}, batch {batch}\n(predicted)")
            axes.axvline(1, color=INK, linewidth=0.8)
        _finish(figure, row, entries, f"PREDICTED time of {model} / that of the base")
    put_legend(figure, family_handles(entries, is_filled=False))
    return figure


def _finish(figure: Figure, grid: Sequence[Axes], entries: Sequence[Entry], x: str) -> None:
    loss_axis(grid[0], entries)
    for axes in grid[1:]:
        loss_axis(axes, entries)
    grid[0].set_ylabel(LOSS)
    figure.supxlabel(x, fontsize=9)


def _points(axes: Axes, entries: Sequence[Entry], places: Sequence[float], is_filled: bool) -> None:
    """Draw the entries at their places, the frontier of each family, and the base."""
    styles = looks(entries)
    for entry, place in zip(entries, places, strict=True):
        if entry.is_base:
            colour, marker = BASE_LOOK
            axes.plot(place, 0, marker, color=colour, markersize=12, zorder=4)
            continue
        if (difference := entry.over_base) is None:
            continue
        colour, marker = styles[entry.family]
        ends = None
        if difference.low is not None and difference.high is not None:
            ends = [[difference.value - difference.low], [difference.high - difference.value]]
        axes.errorbar(
            place,
            difference.value,
            yerr=ends,
            fmt=marker,
            color=colour,
            mfc=colour if is_filled else "white",
            markersize=6,
            elinewidth=0.9,
            zorder=3,
        )
    for name in families(entries):
        if name == "top-k":
            continue  # Twins with other weights are no points of one frontier.
        own = [i for i, e in enumerate(entries) if e.family == name and not e.is_base]
        front = frontier([entries[i] for i in own], [places[i] for i in own])
        if len(front) > 1:
            look = "-" if is_filled else "--"
            axes.plot(*zip(*front, strict=True), look, color=styles[name][0], lw=1.1, alpha=0.7)
