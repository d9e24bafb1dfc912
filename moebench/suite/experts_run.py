"""A suite of expert backends: measured on this machine, cell by cell, and reported."""

import argparse
import math
import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from itertools import groupby
from pathlib import Path

import torch

from moebench import terminal
from moebench.experts.backends import why_not
from moebench.experts.catalogue import EXPERT_BACKENDS
from moebench.files import make_folder
from moebench.measure.devices import choose_device
from moebench.measure.environment import Environment, describe_machine, machine_folder
from moebench.measure.host import meter
from moebench.measure.nvml import is_simulated, open_nvml
from moebench.records.checksum import append_lines, set_aside, write_document
from moebench.records.experts_run import CELLS, ExpertsCell, ExpertsManifest, load_experts_run
from moebench.records.manifest import MANIFEST, run_id
from moebench.records.results import Provenance
from moebench.report.backends import report_experts
from moebench.spec.schema import encode
from moebench.suite.expert_bench import scratch
from moebench.suite.experts_cell import measure_cell
from moebench.suite.experts_plan import ExpertsSuite, load_experts_suite, planned_cells
from moebench.suite.experts_time import expected_time, opening_time
from moebench.suite.source import SuiteSource
from moebench.suite.workers import Workers
from moebench.units import Bytes, Seconds

LONG_CELL: Seconds = 360.0
"""Time after which a cell has the least number of rounds only, with or without a budget."""
FULL_GRID: Seconds = 3600.0
"""About what --full takes on two cores: the length of its progress bar."""
FOREIGN = ("dry_run", "eager", "layers", "only", "predict", "recalibrate", "write_hardware")
"""Options of suites that compare routers."""


def run_experts_suite(options: argparse.Namespace, source: SuiteSource, argv: Sequence[str]) -> int:
    """Measure the suite, or what is left of a run, write its report and print the table."""
    for name in FOREIGN:
        if getattr(options, name):
            raise ValueError(f"--{name.replace('_', '-')}: not for a suite of expert backends")
    suite = load_experts_suite(source)
    device = choose_device(options.device)
    names = options.experts or suite.file.backends
    backends, absent = _present(names, device)
    if absent and options.experts:
        name, why = next(iter(absent.items()))
        raise ValueError(f"--experts: {name!r} does not run here: {why}")
    environment = describe_machine(device)
    plans = planned_cells(suite, options.full)
    directory = options.resume
    if directory is None:
        started = datetime.now(UTC)
        manifest = ExpertsManifest(
            run=run_id(started, environment.software.commit),
            suite=source.name,
            suite_sha256=source.sha256,
            suite_text=source.text,
            models=suite.models,
            title=suite.file.title,
            command=shlex.join(["python", "-m", "moebench.suite", *argv]),
            argv=tuple(argv),
            environment=encode(environment),
            backends=tuple(backends),
            absent=absent,
            cells=tuple(plan.key for plan in plans),
            started_at=started.isoformat(timespec="seconds"),
            provenance=_provenance(device),
        )
        directory = options.out / source.name / machine_folder(environment) / manifest.run
        if directory.exists():
            raise ValueError(f"{directory}: exists; resume it or write elsewhere")
        make_folder(directory)
        write_document(directory / MANIFEST, encode(manifest))
    todo = _unfinished(directory, environment, plans)
    if todo:
        if (load := meter(device).look()).is_busy:
            terminal.say(load.warning)
        budget = math.inf if options.full else suite.file.time_budget
        if options.time_budget is not None:
            budget = options.time_budget
        hire = partial(Workers, backends, str(device))
        _measure_cells(directory, suite, todo, hire, budget)
    return report_experts(directory, options.json)


def _provenance(device: torch.device) -> Provenance:
    """Whether times are a GPU's, or those of one that is imitated beside a simulated NVML."""
    nvml = open_nvml() if device.type == "cuda" else None
    return "simulated" if nvml is not None and is_simulated(nvml) else "measured"


def _present(names: Sequence[str], device: torch.device) -> tuple[list[str], dict[str, str]]:
    """The backends that run here, and the reasons why others do not."""
    absent = {}
    for name in names:
        why = why_not(name, device) if name in EXPERT_BACKENDS else "it is not part of this build"
        if why is not None:
            absent[name] = why
    return [name for name in names if name not in absent], absent


def _unfinished(
    directory: Path, environment: Environment, plans: Sequence[ExpertsCell]
) -> list[ExpertsCell]:
    """The cells that the run does not have; its damaged lines are set aside."""
    run = load_experts_run(directory)
    if run.manifest.fingerprint != environment.fingerprint:
        raise ValueError(
            f"{directory}: was measured on another machine or with other software; a run cannot "
            "mix two"
        )
    for problem in run.problems:
        terminal.say(f"note: {problem}")
    set_aside(directory / CELLS, run.lines)
    finished = {result.plan.key for result in run.cells}
    return [plan for plan in plans if plan.key not in finished]


def _measure_cells(
    directory: Path,
    suite: ExpertsSuite,
    todo: Sequence[ExpertsCell],
    hire: Callable[[Bytes], Workers],
    budget: Seconds,
) -> None:
    """Measure cells, each appended to the run as soon as it is done; workers live for a shape.

    A cell has its part of the time that is left, as long as it and all others are expected to take.
    """
    again = shlex.join(["python", "-m", "moebench.suite", "--resume", str(directory.absolute())])
    deadline, left = time.perf_counter() + budget, len(todo)
    num_backends = len(load_experts_run(directory).manifest.backends)
    costs = {plan.key: expected_time(plan, num_backends) for plan in todo}
    openings = {(plan.shape, plan.dtype): opening_time(plan) for plan in todo}
    with terminal.Bar(budget if math.isfinite(budget) else FULL_GRID) as bar:
        for shape, group in groupby(todo, lambda plan: (plan.shape, plan.dtype)):
            plans = list(group)
            openings.pop(shape, None)
            with closing(hire(max(map(scratch, plans)))) as workers:
                for plan in plans:
                    free = deadline - time.perf_counter()
                    if free <= 0:
                        terminal.say(f"out of time with {left} cells left; go on with: {again}")
                        return

                    def tell(_: float, what: str, key: str = plan.key) -> None:
                        bar.tell(f"{key}: {what}")

                    tell(0.0, "weights")
                    rest = sum(costs.values())
                    share = costs.pop(plan.key) / rest
                    allowed = min(max(free - sum(openings.values()), 0.0) * share, LONG_CELL)
                    try:
                        result = measure_cell(suite.file, plan, workers, allowed, tell)
                    except RuntimeError as error:
                        raise ValueError(
                            f"{plan.key}: {error}, for want of memory most likely; the cells "
                            f"before are kept, go on with: {again}"
                        ) from error
                    append_lines(directory / CELLS, [result])
                    left -= 1
