"""Report of a run of expert backends: a table a cell, the goals with what was reached, a figure."""

from collections.abc import Sequence
from pathlib import Path

from moebench import terminal
from moebench.files import replace_file
from moebench.records.experts_run import (
    ExpertsManifest,
    ExpertsResult,
    ExpertsRun,
    load_experts_run,
)
from moebench.report.backend_goals import Goal, goals
from moebench.report.backend_rows import (
    TRAINED,
    BackendRow,
    baseline_of,
    cell_rows,
    machine_rates,
    router_shares,
)
from moebench.report.document import (
    Block,
    Bullets,
    Command,
    Grid,
    Heading,
    Paragraph,
    Picture,
    markdown,
)
from moebench.spec.schema import encode
from moebench.units import text

TWO_POINT_ADA_K = (
    " ada-k is here one expert for 60 % of the tokens and two for 40 %; since schema 3 it is the "
    "geometric distribution of the same mean."
)


def report_experts(directory: Path, as_json: bool) -> int:
    """Write the report of a run of expert backends into its directory, and print it; 0.

    Raises:
        ValueError: the run cannot be read, or has no cell yet.
    """
    run = load_experts_run(directory)
    for problem in run.problems:
        terminal.say(f"note: {problem}")
    _write(run)
    if as_json:
        terminal.show_json({"directory": str(directory), "cells": encode(run.cells)})
    else:
        terminal.show(markdown(_blocks(run, None)))
    return 0


def _write(run: ExpertsRun) -> None:
    """Write `report.md` and the figure beside the cells."""
    # Importing matplotlib takes longer than everything else a report does.
    from moebench.report.figures.backends import backends_figure
    from moebench.report.figures.style import png, styled

    if not run.cells:
        raise ValueError(f"{run.directory}: no cell was measured yet; nothing to report")
    with styled():
        drawn = png(backends_figure(run.cells, _baselines(run.cells)))
    caption = (
        "Left: time of each backend over the default's, same rounds, with 95 % intervals. Right: "
        "what fewer assignments save in the bound, and in time."
    )
    picture = Picture("execution", "Expert execution", caption, drawn)
    replace_file(run.directory / "execution.png", drawn)
    replace_file(run.directory / "report.md", markdown(_blocks(run, picture)).encode())


def _blocks(run: ExpertsRun, picture: Picture | None) -> list[Block]:
    manifest, cells = run.manifest, run.cells
    blocks: list[Block] = [
        Heading(manifest.title, 1),
        Command(manifest.command),
        Paragraph(_rests_on(manifest, cells)),
    ]
    if picture is not None:
        blocks.append(picture)
    for cell in cells:
        blocks.append(Heading(cell.plan.key))
        rates = machine_rates(cell)
        blocks.append(
            Paragraph(
                f"Limits in the same rounds: matmul {rates.matmul / 1e12:.3f} TFLOP/s, "
                f"read {rates.read / 1e9:.1f} GB/s."
            )
        )
        over = f"/ {baseline_of(cell)}"
        for mix in cell.plan.mixes:
            head = (mix, "time", "95 %", "matmul", "read", "bound", over, "95 % ", "n")
            blocks.append(Grid(head, [_row_cells(row) for row in cell_rows(cell, mix)]))
        blocks += [Paragraph(f"{entry}: {error}") for entry, error in cell.errors.items()]
    blocks += _goals(cells)
    blocks += _routers(cells)
    if run.problems:
        blocks += [Heading("What is wrong with the files of this run"), Bullets(run.problems)]
    return blocks


def _rests_on(manifest: ExpertsManifest, cells: Sequence[ExpertsResult]) -> str:
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
    interval = ""
    if row.time.low is not None and row.time.high is not None:
        interval = f"{text(row.time.low, 'time')} to {text(row.time.high, 'time')}"
    ratio = row.ratio
    return (
        row.backend,
        text(row.time.value, "time"),
        interval,
        f"{row.matmul_share:.0%}",
        f"{row.read_share:.0%}",
        f"{row.bound_share:.0%}",
        "" if ratio is None else f"{ratio.value:.2f}",
        "" if ratio is None else _limits(ratio.low, ratio.high),
        str(row.num_rounds),
    )


def _limits(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:.2f} to {high:.2f}"


def _goals(cells: Sequence[ExpertsResult]) -> list[Block]:
    asked = goals(cells)
    reached = sum(goal.is_reached for goal in asked)
    titles = ("figure", "where", "value", "95 %", "asked", "reached")
    return [
        Heading("The figures asked"),
        Paragraph(f"{reached} of {len(asked)} reached."),
        Grid(titles, [_goal_cells(goal) for goal in asked], (0, 1, 4, 5)),
    ]


def _goal_cells(goal: Goal) -> tuple[str, ...]:
    return (
        goal.title,
        goal.where,
        f"{goal.value:.2f}",
        _limits(goal.low, goal.high),
        goal.asked,
        "yes" if goal.is_reached else "no",
    )


def _routers(cells: Sequence[ExpertsResult]) -> list[Block]:
    """Each router's share of the time of router and experts; nothing where no router ran."""
    shares = {(cell.plan.key, name): share for cell, name, share in router_shares(cells)}
    if not shares:
        return []
    keys, routers = (list(dict.fromkeys(names)) for names in zip(*shares, strict=True))
    return [
        Heading(f"Routers: share of router and experts ({_baselines(cells)})"),
        Grid(
            ("cell", *routers),
            [(key, *(f"{shares[key, router]:.1%}" for router in routers)) for key in keys],
        ),
    ]


def _baselines(cells: Sequence[ExpertsResult]) -> str:
    """The baseline of the forward cells; one name unless some cells lack it."""
    forward = (baseline_of(cell) for cell in cells if cell.plan.phase == "forward")
    return " or ".join(dict.fromkeys(forward)) or TRAINED
