"""Measure the suite `experts`: rounds in which every backend and mix of a cell takes its turn.

A cell's line is written (`moebench.records.experts_run`) as soon as the cell is done;
`--resume` goes on after the last one.
"""

import argparse
import math
import random
import shlex
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

import torch

from moebench import terminal
from moebench.experts.backends import takes_dtype, why_not
from moebench.experts.catalogue import EXPERT_BACKENDS, executing
from moebench.files import make_folder
from moebench.measure.devices import choose_device
from moebench.measure.environment import describe_machine, machine_folder
from moebench.records.checksum import append_lines, set_aside, write_document
from moebench.records.experts_run import (
    CELLS,
    PROBE_WORK,
    ExpertsCell,
    ExpertsManifest,
    ExpertsResult,
    load_experts_run,
)
from moebench.records.manifest import MANIFEST, run_id
from moebench.records.record import SCHEMA
from moebench.report.backends import report_experts
from moebench.spec.schema import encode
from moebench.suite.expert_bench import scratch
from moebench.suite.experts_plan import ExpertsSuite, load_experts_suite, planned_cells
from moebench.suite.suite_file import suite_path
from moebench.suite.workers import Workers
from moebench.units import Seconds, quantity
from moebench.version import VERSION

QUICK_VISIT: Seconds = 0.02
"""A visit of quick steps runs as many of them as fill this."""
MOST_STEPS = 16
WARM_ALL: Seconds = 0.5
"""Quicker entries are warmed up on every step that they cycle through: oneDNN generates a kernel
for each new number of rows (0.3 ms a matrix): ragged steps have many, fixed ones few."""
LEAST_ROUNDS = 6
LONG_CELL: Seconds = 360.0
"""After which a cell has no more rounds than the least, with or without a budget."""
LONG_STEP: Seconds = 5.0
"""Entries with a first step as long as this are warm enough."""
SLOW_ENTRY = 12.0
"""A backend this many times slower than the fastest is timed in `SLOW_ROUNDS` rounds only."""
SLOW_ROUNDS = 3


FOREIGN = ("dry_run", "eager", "layers", "only", "predict", "recalibrate", "write_hardware")
"""Options of suites that compare routers."""


def run_experts_suite(options: argparse.Namespace, argv: Sequence[str]) -> int:
    """Measure the suite, or what is left of a run, write its report and print the table.

    Raises:
        ValueError: an option that does not apply, or a backend that does not run here.
    """
    for name in FOREIGN:
        if getattr(options, name):
            raise ValueError(f"--{name.replace('_', '-')}: not for a suite of expert backends")
    try:
        seconds = quantity(options.time_budget, "time") if options.time_budget else None
    except ValueError as error:
        raise ValueError(f"--time-budget: {error}") from error
    directory = measure(
        load_experts_suite(suite_path(options.suite)),
        argv,
        options.device,
        options.out,
        options.resume,
        options.full,
        options.experts,
        seconds,
    )
    return report_experts(directory, options.json)


def measure(
    suite: ExpertsSuite,
    argv: Sequence[str],
    device_name: str,
    out: Path,
    resumed: Path | None,
    is_full: bool,
    chosen: Sequence[str],
    budget: Seconds | None,
) -> Path:
    """Measure what is not yet there; the run's directory.

    Args:
        suite: what to measure.
        argv: the command line, for the manifest.
        device_name: as `--device` has it.
        out: where runs are kept.
        resumed: the directory of a run to go on with.
        is_full: the full grid, without a budget.
        chosen: backends instead of the suite's.
        budget: wall time instead of the suite's.
    """
    device = choose_device(device_name)
    backends, absent = present(chosen or suite.file.backends, device, bool(chosen))
    environment = describe_machine(device)
    plans = planned_cells(suite.file, is_full)
    if resumed is None:
        started = datetime.now(UTC)
        run = run_id(started, (environment.software.commit or f"v{VERSION}")[:9])
        directory = out / suite.name / machine_folder(environment) / run
        if directory.exists():
            raise ValueError(f"{directory}: exists; resume it or write elsewhere")
        make_folder(directory)
        manifest = ExpertsManifest(
            run=run,
            suite=suite.name,
            suite_sha256=suite.text_sha256,
            title=suite.file.title,
            command=shlex.join(["python", "-m", "moebench.suite", *argv]),
            argv=tuple(argv),
            environment=encode(environment),
            backends=tuple(backends),
            absent=absent,
            cells=tuple(plan.key for plan in plans),
            started_at=started.isoformat(timespec="seconds"),
            schema=SCHEMA,
        )
        write_document(directory / MANIFEST, encode(manifest))
    else:
        directory = resumed
        manifest = load_experts_run(directory).manifest
        is_here = manifest.fingerprint == environment.fingerprint
        if not is_here or manifest.suite_sha256 != suite.text_sha256:
            raise ValueError(
                f"{directory}: was measured on another machine, with other software, or from "
                "another version of the suite; a run cannot mix two"
            )
    kept = load_experts_run(directory)
    for problem in kept.problems:
        terminal.say(f"note: {problem}")
    set_aside(directory / CELLS, kept.lines)
    finished = {result.plan.key for result in kept.cells}
    todo = [plan for plan in plans if plan.key not in finished]
    if todo:
        allowed = budget or (math.inf if is_full else suite.file.time_budget)
        _measure_cells(directory, suite, todo, backends, str(device), allowed)
    return directory


def present(
    names: Sequence[str], device: torch.device, is_strict: bool
) -> tuple[list[str], dict[str, str]]:
    """Those of the backends that run here, and why the others do not.

    Raises:
        ValueError: under `is_strict`, for the first that does not run.
    """
    absent = {}
    for name in names:
        why = why_not(name, device) if name in EXPERT_BACKENDS else "it is not part of this build"
        if why is not None:
            absent[name] = why
    if absent and is_strict:
        name, why = next(iter(absent.items()))
        raise ValueError(f"--experts: {name!r} does not run here: {why}")
    return [name for name in names if name not in absent], absent


def _measure_cells(
    directory: Path,
    suite: ExpertsSuite,
    todo: Sequence[ExpertsCell],
    backends: Sequence[str],
    device: str,
    budget: Seconds,
) -> None:
    deadline = time.perf_counter() + budget
    left = len(todo)
    with terminal.Bar(budget if math.isfinite(budget) else 3600.0) as bar:
        for _, group in groupby(todo, lambda plan: (plan.shape, plan.dtype)):
            plans = list(group)
            with closing(Workers(backends, device, max(map(scratch, plans)))) as workers:
                for plan in plans:
                    share = (deadline - time.perf_counter()) / left
                    if share <= 0:
                        terminal.say(
                            f"out of time with {left} cells left; go on with: "
                            f"python -m moebench.suite --resume {directory}"
                        )
                        return
                    bar.tell(plan.key)
                    allowed = min(3 * share, LONG_CELL)
                    try:
                        result = _measure_cell(suite, plan, backends, workers, allowed)
                    except RuntimeError as error:
                        raise ValueError(
                            f"{plan.key}: {error}, for want of memory most likely; the cells "
                            "before are kept, go on with: "
                            f"python -m moebench.suite --resume {directory}"
                        ) from error
                    append_lines(directory / CELLS, [result])
                    left -= 1


def _measure_cell(
    suite: ExpertsSuite,
    plan: ExpertsCell,
    backends: Sequence[str],
    workers: Workers,
    allowed: Seconds,
) -> ExpertsResult:
    """Rounds in random order until there are enough, or time for the least number is up."""
    start = time.perf_counter()
    routers = suite.file.routers if plan.phase == "forward" else ()
    result = ExpertsResult(plan, workers.open(plan, suite.file.seed, routers))
    entries = _entries(plan, backends, routers)
    visits: dict[tuple[str, str], int] = {}
    warm: dict[tuple[str, str], Seconds] = {}
    for what, mix in entries:
        try:
            for _ in range(2):
                warm[what, mix] = workers.ask(what, "time", what, mix, plan.phase, 0, 1)
                if warm[what, mix] > LONG_STEP:
                    break
            if warm[what, mix] < WARM_ALL:
                for first in range(1, plan.num_steps):
                    workers.ask(what, "time", what, mix, plan.phase, first, 1)
        except RuntimeError as error:
            result.errors[f"{what}, {mix}"] = str(error)
            continue
        steps = math.ceil(QUICK_VISIT / max(warm[what, mix], 1e-6))
        visits[what, mix] = max(1, min(MOST_STEPS, steps))
    fastest: dict[str, Seconds] = {}
    for (what, mix), seconds in warm.items():
        if what in backends:
            fastest[mix] = min(seconds, fastest.get(mix, seconds))
    slow = {e for e, s in warm.items() if e[0] in backends and s > SLOW_ENTRY * fastest[e[1]]}
    order = random.Random(suite.file.seed)
    turns: list[tuple[str, str]] = [*visits, *((limit, "") for limit in PROBE_WORK)]
    for number in range(suite.file.rounds):
        if number >= LEAST_ROUNDS and time.perf_counter() - start > allowed:
            break
        order.shuffle(turns)
        for what, mix in turns:
            if not mix:
                seconds = workers.ask(what, "time", what, mix, plan.phase, 0, 1)
                result.limits.setdefault(what, []).append(seconds)
                continue
            if (what, mix) in slow and number >= SLOW_ROUNDS:
                continue
            if f"{what}, {mix}" in result.errors:
                continue
            steps = visits[what, mix]
            try:
                seconds = workers.ask(what, "time", what, mix, plan.phase, number, steps)
            except RuntimeError as error:
                result.errors[f"{what}, {mix}"] = str(error)
                continue
            samples = result.samples.setdefault(what, {}).setdefault(mix, [])
            samples.append((number, number, seconds))
            result.num_steps[f"{what}, {mix}"] = steps
    return result


def _entries(
    plan: ExpertsCell, backends: Sequence[str], routers: Sequence[str]
) -> list[tuple[str, str]]:
    dtype = getattr(torch, plan.dtype)
    fit = [name for name in backends if takes_dtype(name, dtype)]
    if plan.phase == "train":
        # A backend that another stands in for would be that one once more.
        fit = [name for name in fit if EXPERT_BACKENDS[name].has_gradients]
        fit = [name for name in fit if executing(name, "train").name == name]
    entries = [(name, mix) for mix in plan.mixes for name in fit]
    return entries + [(f"router {name}", plan.mixes[0]) for name in routers]
