"""Speedup: measured with its interval, predicted, and what FLOPs promise."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from moebench.compare.pairs import SAME_MARGIN
from moebench.records.results import Ratio, Record
from moebench.records.run import KeptRun
from moebench.report.cases import ratio
from moebench.report.figures.style import (
    BAND,
    INK,
    MUTED,
    WIDTH,
    Drawing,
    add_legend,
    levels_of,
    router_colours,
    shown,
    titles_of,
)
from moebench.report.notation import level_title


def speedup_by_batch(run: KeptRun) -> Figure | str:
    """Decode: measured speedup with its interval, predicted speedup, and what FLOPs promise."""
    records = [r for r in _compared(run) if r.case.workload.phase == "decode"]
    if not records:
        return "no speedup was measured in decode"
    colours, levels, titles = router_colours(run), levels_of(records), titles_of(records)
    batches = sorted({r.case.workload.batch for r in records})
    figure = Figure(figsize=(WIDTH, 0.9 + 2.35 * len(levels)), layout="constrained")
    grid = figure.subplots(len(levels), len(titles), sharex=True, sharey=True, squeeze=False)
    for i, level in enumerate(levels):
        for j, title in enumerate(titles):
            axes: Axes = grid[i][j]
            own = [
                r for r in records if (r.case.workload.level, r.case.router.title) == (level, title)
            ]
            own.sort(key=lambda r: r.case.workload.batch)
            _draw_speedup_panel(axes, own, colours[title], run)
            if i == 0:
                axes.set_title(shown(title), color=colours[title])
            if j == 0:
                axes.set_ylabel(f"{level_title(level)}\nspeedup")
            if i == len(levels) - 1:
                axes.set_xlabel("batch")
    axes = grid[0][0]
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(batches))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0f}"))
    axes.set_xlim(batches[0] / 1.6, batches[-1] * 1.6)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}×"))
    add_legend(figure, _ratio_handles(INK))
    return figure


def _draw_speedup_panel(axes: Axes, records: Sequence[Record], colour: str, run: KeptRun) -> None:
    _draw_one(axes, run, horizontal=True)
    x = [r.case.workload.batch for r in records]
    for kind, style in (("flops-promise", ":"), ("predicted-speedup", "--")):
        pairs = [(r.case.workload.batch, p.value) for r in records if (p := ratio(r, kind))]
        dotted = kind == "flops-promise"
        if pairs:
            axes.plot(
                *zip(*pairs, strict=True),
                linestyle=style,
                color=INK if dotted else colour,
                linewidth=1.3,
                marker="" if dotted else "D",
                markersize=4,
                markerfacecolor="white",
                zorder=2,
            )
    measured = [r for record in records if (r := ratio(record, "speedup"))]
    limits = [
        (b, r.low, r.high)
        for b, r in zip(x, measured, strict=True)
        if r.low is not None and r.high is not None
    ]
    if limits:
        places, low, high = zip(*limits, strict=True)
        axes.fill_between(places, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.errorbar(
        x,
        [r.value for r in measured],
        yerr=_error_bars(measured),
        color=colour,
        marker="o",
        markersize=4.5,
        capsize=2.5,
        elinewidth=1.2,
        zorder=3,
    )


def speedup_elsewhere(run: KeptRun) -> Figure | str:
    """Prefill and training: the same three numbers, one line a router."""
    records = [r for r in _compared(run) if r.case.workload.phase != "decode"]
    if not records:
        return "no speedup was measured in prefill or training"
    colours, levels = router_colours(run), levels_of(records)
    labels, titles = list(dict.fromkeys(r.case.workload.label for r in records)), titles_of(records)
    places = {
        (label, title): i * (len(titles) + 1.6) + j
        for i, label in enumerate(labels)
        for j, title in enumerate(titles)
    }
    height = 1.3 + 0.21 * (max(places.values()) + 1)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    grid = figure.subplots(1, len(levels), sharex=True, sharey=True, squeeze=False)[0]
    for axes, level in zip(grid, levels, strict=True):
        _draw_one(axes, run, horizontal=False)
        for record in records:
            w, title = record.case.workload, record.case.router.title
            measured = ratio(record, "speedup")
            if w.level != level or measured is None:
                continue
            y, colour = places[w.label, title], colours[title]
            promise, predicted = ratio(record, "flops-promise"), ratio(record, "predicted-speedup")
            if promise:
                axes.plot([promise.value] * 2, [y - 0.42, y + 0.42], ":", color=INK)
            if predicted:
                axes.plot(predicted.value, y + 0.2, "D", color=colour, mfc="white", markersize=4)
            axes.errorbar(
                [measured.value],
                [y - 0.16],
                xerr=_error_bars([measured]),
                fmt="o",
                color=colour,
                markersize=5,
                capsize=2.5,
            )
        axes.set_title(level_title(level))
        axes.set_xlabel("speedup")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}×"))
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
    ticks = [(places[label, titles[0]] - 1.0, label, INK) for label in labels]
    ticks += [(y, shown(title), colours[title]) for (_, title), y in places.items()]
    grid[0].set_yticks([y for y, _, _ in ticks], [name for _, name, _ in ticks])
    for tick, (_, name, colour) in zip(grid[0].get_yticklabels(), ticks, strict=True):
        tick.set(color=colour, weight="bold" if name in labels else "normal")
    grid[0].set_ylim(max(places.values()) + 0.7, -1.6)
    add_legend(figure, _ratio_handles(INK))
    return figure


def _compared(run: KeptRun) -> list[Record]:
    return [r for r in run.records if ratio(r, "speedup") is not None]


def _error_bars(ratios: Sequence[Ratio]) -> list[list[float]]:
    """Distances to the limits; 0 where there is no interval."""
    return [
        [r.value - r.low if r.low is not None else 0.0 for r in ratios],
        [r.high - r.value if r.high is not None else 0.0 for r in ratios],
    ]


def _draw_one(axes: Axes, run: KeptRun, horizontal: bool) -> None:
    """The line of no difference, and the band inside which differences mean nothing."""
    margin = max(SAME_MARGIN, run.manifest.noise_floor or 0.0)
    if horizontal:
        axes.axhspan(1 - margin, 1 + margin, color=BAND, linewidth=0, zorder=0)
        axes.axhline(1, color=MUTED, linewidth=0.8, zorder=1)
    else:
        axes.axvspan(1 - margin, 1 + margin, color=BAND, linewidth=0, zorder=0)
        axes.axvline(1, color=MUTED, linewidth=0.8, zorder=1)


def _ratio_handles(colour: str) -> list[Any]:
    return [
        Line2D([], [], color=colour, marker="o", markersize=4.5, label="measured, 95 % interval"),
        Line2D(
            [],
            [],
            color=colour,
            marker="D",
            markersize=4,
            markerfacecolor="white",
            linestyle="--",
            linewidth=1.3,
            label="predicted before the run",
        ),
        Line2D([], [], color=colour, linestyle=":", linewidth=1.5, label="what FLOPs promise"),
        Patch(color=BAND, label="no difference"),
    ]


DRAWINGS = (
    Drawing(
        "speedup",
        "Decode: speedup against batch",
        "Filled circles: total time of the baseline over total time of the router on the same "
        "steps, with 95 % intervals. Dashed: predicted before the run. Dotted: the speedup if time "
        "followed FLOPs, at the same level and context. Grey: within 1 % (or the noise floor, if "
        "that is larger) of no difference.",
        speedup_by_batch,
    ),
    Drawing(
        "speedup-prefill-train",
        "Prefill and training: speedup",
        "Filled circles: measured, with 95 % intervals. Open diamonds: predicted before the run. "
        "Dotted ticks: the speedup if time followed FLOPs. Grey: within 1 % (or the noise floor, "
        "if that is larger) of no difference.",
        speedup_elsewhere,
    ),
)
