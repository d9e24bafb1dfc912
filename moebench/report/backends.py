"""Report of a run of expert backends: a table a cell, the goals with what was reached, a figure."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from moebench import terminal
from moebench.files import replace_file
from moebench.records.experts_run import ExpertsResult, ExpertsRun, load_experts_run
from moebench.records.results import Interval
from moebench.report.backend_goals import goals
from moebench.report.backend_rows import (
    BackendRow,
    backend_rows,
    baseline_of,
    drawn_phase,
    machine_rates,
    router_shares,
)
from moebench.report.document import (
    Block,
    Command,
    Grid,
    Heading,
    Paragraph,
    Picture,
    listed,
    markdown,
)
from moebench.report.host import busy_cells
from moebench.spec.schema import encode
from moebench.units import text

TIMES = "time of each backend over the default's, same rounds, with 95 % intervals."
SAVED = "what fewer assignments save in the bound, and in time."
TWO_POINT_ADA_K = (
    " ada-k is here one expert for 60 % of the tokens and two for 40 %; since schema 3 it is the "
    "geometric distribution of the same mean."
)


def report_experts(directory: Path, as_json: bool) -> int:
    """Write the report of a run of expert backends into its directory, and print it; 0."""
    # Importing matplotlib takes longer than everything else a report does.
    from moebench.report.figures.backends import backends_figure
    from moebench.report.figures.style import png, styled

    run = load_experts_run(directory)
    for problem in run.problems:
        terminal.say(f"note: {problem}")
    if not run.cells:
        raise ValueError(f"{directory}: no cell was measured yet; nothing to report")
    with styled():
        figure = backends_figure(run.cells, _baselines(run.cells))
        drawn = png(figure)
    caption = f"Left: {TIMES} Right: {SAVED}" if len(figure.axes) > 1 else TIMES.capitalize()
    picture = Picture("execution", "Expert execution", caption, drawn)
    files = {"execution.png": drawn, "report.md": markdown(_blocks(run, picture)).encode()}
    for name, data in files.items():
        terminal.write_beside(partial(replace_file, directory / name, data))
    if as_json:
        terminal.show_json({"directory": str(directory), "cells": encode(run.cells)})
    else:
        terminal.show(markdown(_blocks(run)))
    return 0


def _blocks(run: ExpertsRun, *pictures: Picture) -> list[Block]:
    blocks: list[Block] = [
        Heading(f"{_mark(run)}{run.manifest.title}", 1),
        *map(Paragraph, _summary(run)),
        *(Paragraph(f"⚠ {line}") for line in busy_cells([c.load for c in run.cells if c.load])),
        Command(run.manifest.command),
        Paragraph(_rests_on(run)),
        *pictures,
    ]
    for cell in run.cells:
        matmul, read = machine_rates(cell)
        limits = f"matmul {matmul / 1e12:.3f} TFLOP/s, read {read / 1e9:.1f} GB/s"
        blocks += [Heading(cell.plan.key), Paragraph(f"Limits in the same rounds: {limits}.")]
        if cell.load is not None and cell.load.is_busy:
            blocks.append(Paragraph(f"⚠ busy-machine: {cell.load.finding}; times are poor."))
        over, rows = f"/ {baseline_of(cell)}", backend_rows([cell])
        for mix in cell.plan.mixes:
            head = (mix, "time", "95 %", "matmul", "read", "bound", over, "95 % ", "n")
            blocks.append(Grid(head, [_row_cells(row) for row in rows if row.mix == mix]))
        blocks += [Paragraph(f"{entry}: {error}") for entry, error in cell.errors.items()]
    blocks += [*_goals(run.cells), *_routers(run.cells)]
    blocks += listed("What is wrong with the files of this run", run.problems)
    return blocks


def _mark(run: ExpertsRun) -> str:
    """What stands before the title of a run that measured nothing."""
    return "SIMULATED, no GPU has run this: " if run.manifest.provenance == "simulated" else ""


def _summary(run: ExpertsRun) -> tuple[str, str, str]:
    """The result in three plain sentences: what was established, what was not, what is next."""
    rows = [r for r in backend_rows(run.cells) if r.ratio is not None]
    others = dict.fromkeys(r.backend for r in rows if r.backend != _baselines(run.cells))
    slower = []
    for name in others:
        lows = [r.ratio.low for r in rows if r.backend == name and r.ratio is not None]
        surely = sum(low is not None and low > 1 for low in lows)
        slower.append(f"{name} in {surely} of {len(lows)}")
    asked = goals(run.cells)
    missed = [goal.title for goal in asked if not goal.is_reached]
    waiting = len(run.manifest.cells) - len(run.cells)
    absent = run.manifest.absent
    open_questions = [
        f"{len(missed)} of {len(asked)} figures asked were not reached" * bool(missed),
        f"{waiting} cells were not measured" * (waiting > 0),
        f"{', '.join(absent)} did not run here" * bool(absent),
    ]
    if waiting:
        following = "resume the run (python -m moebench.suite --resume) for the cells that wait"
    elif absent:
        following = f"install what did not run ({', '.join(absent)}) and measure again"
    else:
        following = "choose the backend that the table shows to be fastest at your tokens a step"
    return (
        f"Established: slower than {_baselines(run.cells)} are, in the cells where both ran, "
        f"{'; '.join(slower) or 'none'}.",
        f"Not established: {'; '.join(filter(None, open_questions)) or 'nothing that was asked'}.",
        f"Next: {following}.",
    )


def _rests_on(run: ExpertsRun) -> str:
    manifest, cells = run.manifest, run.cells
    absent = "; ".join(f"{name}: {why}" for name, why in manifest.absent.items())
    done = f"{len(cells)} of {len(manifest.cells)} cells"
    is_two_point = manifest.schema < 3 and any("ada-k" in cell.plan.mixes for cell in cells)
    return (
        f"{manifest.fact('cpu', 'model')}, {manifest.fact('software', 'num_threads')} threads, "
        f"torch {manifest.fact('software', 'torch')}; {done}; run {manifest.run}. From the "
        "router's slots to the layer's output, sorting included; medians of interleaved rounds, "
        "every round in random order, each backend that brings its own matmul library in its own "
        "process. matmul and read: shares of the rates measured in the same rounds; bound: the "
        "larger of FLOPs over the matmul rate and touched weights over the read rate, over the "
        f"time. Not run: {absent or 'nothing'}.{TWO_POINT_ADA_K * is_two_point}"
    )


def _row_cells(row: BackendRow) -> tuple[str, ...]:
    shares = (limit / row.time.value for limit in (row.matmul, row.read, row.bound))
    return (
        row.backend,
        text(row.time.value, "time"),
        _limits(row.time, lambda seconds: text(seconds, "time")),
        *(f"{share:.0%}" for share in shares),
        f"{row.ratio.value:.2f}" if row.ratio else "",
        _limits(row.ratio) if row.ratio else "",
        str(row.num_rounds),
    )


def _limits(interval: Interval, shown: Callable[[float], str] = "{:.2f}".format) -> str:
    if interval.low is None or interval.high is None:
        return ""
    return f"{shown(interval.low)} to {shown(interval.high)}"


def _goals(cells: Sequence[ExpertsResult]) -> list[Block]:
    asked, rows = goals(cells), []
    for goal in asked:
        value, reached = f"{goal.value.value:.2f}", "yes" if goal.is_reached else "no"
        rows.append((goal.title, goal.where, value, _limits(goal.value), goal.asked, reached))
    titles = ("figure", "where", "value", "95 %", "asked", "reached")
    return [
        Heading("The figures asked"),
        Paragraph(f"{sum(goal.is_reached for goal in asked)} of {len(asked)} reached."),
        Grid(titles, rows, (0, 1, 4, 5)),
    ]


def _routers(cells: Sequence[ExpertsResult]) -> list[Block]:
    """Each router's share of the time of router and experts; nothing where no router ran."""
    shares = {(cell.plan.key, name): share for cell, name, share in router_shares(cells)}
    if not shares:
        return []
    keys, routers = (list(dict.fromkeys(names)) for names in zip(*shares, strict=True))
    rows = [(key, *(f"{shares[key, router]:.1%}" for router in routers)) for key in keys]
    title = f"Routers: share of router and experts ({_baselines(cells)})"
    return [Heading(title), Grid(("cell", *routers), rows)]


def _baselines(cells: Sequence[ExpertsResult]) -> str:
    """The baseline of the cells that are drawn; one name unless some cells lack it."""
    names = (baseline_of(cell) for cell in cells if cell.plan.phase == drawn_phase(cells))
    return " or ".join(dict.fromkeys(names))
