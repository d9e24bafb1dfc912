"""Figure of claimed speedups beside predicted ones, by batch."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from moebench.predict.claims.settle import PHASES, Settled
from moebench.report.figures.style import INK, MUTED, WIDTH, add_legend, styled
from moebench.spec.hardware import load_hardware

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")


def draw_claims(settled: Sequence[Settled]) -> Figure:
    """Figure with one row of panels a claimed speedup: decode left, prefill right."""
    claims = [s for s in settled if s.curves and s.claim.value and not s.claim.is_control]
    names = dict.fromkeys(curve.hardware for one in claims for curve in one.curves)
    colours = dict(zip(names, COLOURS, strict=False))
    with styled():
        figure = Figure(figsize=(WIDTH, 0.7 + 1.9 * len(claims)), layout="constrained")
        grid = figure.subplots(len(claims), len(PHASES), sharex=True, sharey="row", squeeze=False)
        for row, one in zip(grid, claims, strict=True):
            assert one.claim.value is not None and one.flops_say is not None
            for axes, phase in zip(row, PHASES, strict=True):
                curves = [curve for curve in one.curves if curve.phase == phase]
                for curve in curves:
                    fitting = slice(sum(curve.fits))  # smallest batches are those that fit
                    x, colour = curve.batches[fitting], colours[curve.hardware]
                    if curve.hardware == one.paper.hardware:
                        ends = curve.low[fitting], curve.high[fitting]
                        axes.fill_between(x, *ends, color=colour, alpha=0.16, lw=0)
                    axes.plot(x, curve.speedup[fitting], color=colour, lw=1.3)
                axes.axhline(one.claim.value.value, color=INK, lw=1.2, ls="--")
                axes.axhline(one.flops_say, color=INK, lw=1.2, ls=":")
                axes.axhline(1, color=MUTED, lw=0.8, zorder=1)
                axes.set_xscale("log", base=2)
                axes.xaxis.set_major_locator(LogLocator(base=4, numticks=9))
                axes.xaxis.set_minor_locator(NullLocator())
                axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
                axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.1f}×"))
                tokens = curves[0].tokens
                what = f"context {tokens}" if phase == "decode" else f"{tokens} tokens"
                axes.set_title(f"{one.paper.name}, {one.claim.model}: {phase}, {what}")
        for axes in grid[-1]:
            axes.set_xlabel("batch (sequences)")
        machines = {name: load_hardware(name).title.removeprefix("NVIDIA ") for name in names}
        add_legend(
            figure,
            [
                *(Line2D([], [], color=colours[name], label=machines[name]) for name in names),
                Patch(color=MUTED, alpha=0.3, label="90 % interval on the paper's GPU"),
                Line2D([], [], color=INK, ls="--", label="claimed"),
                Line2D([], [], color=INK, ls=":", label="if time followed FLOPs"),
            ],
        )
    return figure
