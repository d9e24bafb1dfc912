"""The run said: one table of all rows, the figures asked with what was reached, and a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moebench.files import replace_file
from moebench.report.document import (
    Block,
    Bullets,
    Command,
    Heading,
    Paragraph,
    Picture,
    markdown,
    plain_grid,
)
from moebench.suite.execution.mixes import REFERENCE
from moebench.suite.execution.results import CellResult, ExecutionManifest, KeptCells
from moebench.suite.execution.table import (
    TRAINED,
    Finding,
    Line,
    default_of,
    findings,
    limits_of,
    lines,
    realisations,
    router_shares,
)
from moebench.units import text


def write_report(run: KeptCells) -> None:
    """Write `report.md` and the figure beside the cells.

    Raises:
        ValueError: there is no cell yet, or a file cannot be written.
    """
    directory = run.directory
    if not run.cells:
        raise ValueError(f"{directory}: no cell was measured yet; nothing to report")
    draw(run.cells, directory / "execution.png")
    caption = (
        "Left: time of each backend over the default's, same rounds, with 95 % intervals. Right: "
        "what fewer assignments save in the bound, and in time."
    )
    png = (directory / "execution.png").read_bytes()
    picture = Picture("execution", "Expert execution", caption, png)
    blocks = report_blocks(run, picture)
    replace_file(directory / "report.md", markdown(blocks).encode())


def terminal_report(run: KeptCells) -> str:
    """The whole table as text."""
    return markdown(report_blocks(run, None))


def report_blocks(run: KeptCells, picture: Picture | None) -> list[Block]:
    manifest, cells = run.manifest, run.cells
    blocks: list[Block] = [
        Heading(manifest.title, 1),
        Command(manifest.command),
        Paragraph(_rests_on(manifest, cells)),
    ]
    if picture is not None:
        blocks.append(picture)
    rows = lines(cells)
    for cell in cells:
        blocks.append(Heading(cell.plan.key))
        limits = limits_of(cell)
        blocks.append(
            Paragraph(
                f"Limits in the same rounds: matmul {limits.matmul / 1e12:.3f} TFLOP/s, "
                f"read {limits.read / 1e9:.1f} GB/s."
            )
        )
        for mix in cell.plan.mixes:
            mine = [
                line
                for line in rows
                if (line.shape, line.phase, line.dtype, line.num_tokens, line.mix)
                == (cell.plan.shape, cell.plan.phase, cell.plan.dtype, cell.plan.num_tokens, mix)
            ]
            over = f"/ {default_of(cell)}"
            head = (mix, "time", "95 %", "matmul", "read", "bound", over, "95 % ", "n")
            blocks.append(plain_grid(head, [_row(line) for line in mine]))
        for entry, error in cell.errors.items():
            blocks.append(Paragraph(f"{entry}: {error}"))
    blocks += _figures_asked(cells)
    if run.problems:
        blocks += [Heading("What is wrong with the files of this run"), Bullets(run.problems)]
    return blocks


def _rests_on(manifest: ExecutionManifest, cells: Sequence[CellResult]) -> str:
    absent = "; ".join(f"{name}: {why}" for name, why in manifest.absent.items())
    done = f"{len(cells)} of {len(manifest.cells)} cells"
    return (
        f"{manifest.fact('cpu', 'model')}, {manifest.fact('software', 'num_threads')} threads, "
        f"torch {manifest.fact('software', 'torch')}; {done}; run {manifest.run}. From the "
        "router's slots to the layer's output, sorting included; medians of interleaved rounds, "
        "every round in random order, each backend that brings its own matmul library in its own "
        "process. matmul and read: shares of the rates measured in the same rounds; bound: the "
        "larger of FLOPs over the matmul rate and touched weights over the read rate, over the "
        f"time. Not run: {absent or 'nothing'}."
    )


def _row(line: Line) -> tuple[str, ...]:
    interval = ""
    if line.time.low is not None and line.time.high is not None:
        interval = f"{text(line.time.low, 'time')} to {text(line.time.high, 'time')}"
    ratio = limits = ""
    if line.ratio is not None:
        ratio = f"{line.ratio.value:.2f}"
        limits = _limits(line.ratio.low, line.ratio.high)
    return (
        line.backend,
        text(line.time.value, "time"),
        interval,
        f"{line.matmul_share:.0%}",
        f"{line.read_share:.0%}",
        f"{line.bound_share:.0%}",
        ratio,
        limits,
        str(line.num_rounds),
    )


def _limits(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:.2f} to {high:.2f}"


def _figures_asked(cells: Sequence[CellResult]) -> list[Block]:
    blocks: list[Block] = [Heading("The figures asked")]
    found = findings(cells)
    reached = sum(finding.is_reached for finding in found)
    blocks.append(Paragraph(f"{reached} of {len(found)} reached."))
    blocks.append(
        plain_grid(
            ("figure", "where", "value", "95 %", "asked", "reached"),
            [_finding_row(finding) for finding in found],
            (0, 1, 4, 5),
        )
    )
    shares = router_shares(cells)
    if shares:
        routers = list(dict.fromkeys(name for _, name, _ in shares))
        blocks.append(Heading(f"Routers: share of router and experts ({_defaults(cells)})"))
        keys = list(dict.fromkeys(cell.plan.key for cell, _, _ in shares))
        by_place = {(cell.plan.key, name): share for cell, name, share in shares}
        blocks.append(
            plain_grid(
                ("cell", *routers),
                [(key, *(f"{by_place[key, r]:.1%}" for r in routers)) for key in keys],
            )
        )
    return blocks


def _defaults(cells: Sequence[CellResult]) -> str:
    """What the others are compared with, forward; one name unless some cells lack it."""
    forward = (default_of(cell) for cell in cells if cell.plan.phase == "forward")
    return " or ".join(dict.fromkeys(forward)) or TRAINED


def _finding_row(finding: Finding) -> tuple[str, ...]:
    return (
        finding.title,
        finding.where,
        f"{finding.value:.2f}",
        _limits(finding.low, finding.high),
        finding.asked,
        "yes" if finding.is_reached else "no",
    )


def draw(cells: Sequence[CellResult], path: Path) -> None:
    """Left: every backend's time over the default's. Right: time saved against bound saved."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from moebench.report.figures.style import INK, MUTED, OTHER_COLOURS, PAPER_COLOURS, STYLE

    rows = [line for line in lines(cells) if line.mix == "fixed" and line.phase == "forward"]
    default = _defaults(cells)
    names = list(dict.fromkeys(line.backend for line in rows if line.ratio is not None))
    colours = dict(zip(names, (*PAPER_COLOURS.values(), *OTHER_COLOURS), strict=False))
    places = list(dict.fromkeys((r.dtype, r.shape, r.num_tokens) for r in rows))
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(9.0, max(3.6, 0.27 * len(places) + 1.4)), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.35, 1))
        for line in rows:
            if line.ratio is None:
                continue
            y = float(places.index((line.dtype, line.shape, line.num_tokens)))
            y += 0.17 * (names.index(line.backend) - (len(names) - 1) / 2)
            low = line.ratio.value if line.ratio.low is None else line.ratio.low
            high = line.ratio.value if line.ratio.high is None else line.ratio.high
            left.plot((low, high), (y, y), color=colours[line.backend], linewidth=1.0)
            left.plot(line.ratio.value, y, "o", markersize=4, color=colours[line.backend])
        left.axvline(1, color=INK, linewidth=0.9)
        left.set_xscale("log", base=2)
        left.set_xticks([0.5, 1, 2, 4, 8], ["0.5", "1", "2", "4", "8"])
        left.minorticks_off()
        several = len({dtype for dtype, _, _ in places}) > 1
        left.set_yticks(
            range(len(places)),
            [f"{s}, {n}" + (f", {d}" if several else "") for d, s, n in places],
        )
        left.invert_yaxis()
        left.set_xlabel(f"time over that of {default} (above 1: slower)")
        left.set_title("Fixed k, by shape and tokens")
        for name in names:
            left.plot([], [], "o", color=colours[name], markersize=4, label=name)
        figure.legend(loc="outside upper center", ncols=max(1, len(names)))
        _draw_savings(right, cells, MUTED)
        figure.savefig(path)


def _draw_savings(axes: Any, cells: Sequence[CellResult], muted: str) -> None:
    marks = {"geometric": "o", "ada-k": "s"}
    seen = []
    for finding in realisations(cells):
        if finding.title != "realisation":
            continue
        promised = float(finding.asked.rsplit(" ", 1)[1])
        mix = next(mix for mix in REFERENCE if f", {mix} against" in finding.where)
        label = f"{mix} against {REFERENCE[mix]}"
        axes.plot(
            promised,
            finding.value * promised,
            marks[mix],
            color="#0072B2" if mix == "geometric" else "#D55E00",
            markersize=5,
            label=None if label in seen else label,
        )
        seen.append(label)
    axes.plot((1, 4.4), (1, 4.4), color=muted, linewidth=0.9)
    axes.plot((1, 4.4), (0.9, 0.9 * 4.4), color=muted, linewidth=0.9, linestyle=":")
    axes.set_xlabel("saving in the bound")
    axes.set_ylabel("saving in time")
    axes.set_title(f"Fewer assignments ({_defaults(cells)})")
    axes.text(2.6, 2.2, "0.9 of the bound's", color=muted, ha="left", va="top", fontsize=8)
    if seen:
        axes.legend(loc="upper left")
