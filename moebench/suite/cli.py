"""`python -m moebench.suite NAME`: measure a suite on this machine beside its predictions.

The road from end to end: describe and calibrate the machine, write the prediction of every case,
build the layers, measure cell by cell, and write the report. This module only wires. A run that
is cut off - Ctrl-C, SIGTERM, kill -9, a full disk - is taken up again with `--resume`.

Exit codes: 0 done, 2 bad input, 3 some cases failed, 130 interrupted.
"""

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from moebench import terminal
from moebench.compare.noise import kept_noise_floor
from moebench.files import make_folder
from moebench.predict.layers.calibration import from_datasheet
from moebench.records.manifest import Manifest, PlannedCell, recorded_arguments, run_id
from moebench.records.results import Record
from moebench.records.run import KeptRun, Run, load_run
from moebench.report.cases import predicted_table
from moebench.report.table import render_text
from moebench.spec.hardware import HardwareSpec, load_hardware
from moebench.spec.schema import encode
from moebench.suite import loop as campaign
from moebench.suite.forecast import forecast_cells, predictions
from moebench.suite.plan import (
    Cell,
    Kind,
    Suite,
    cells,
    load_suite,
    suite_kind,
    suite_names,
    suite_path,
    suite_title,
)
from moebench.units import Seconds, quantity, text
from moebench.version import VERSION

if TYPE_CHECKING:
    import torch

    from moebench.calibrate.machine import Machine


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run; see the module's text for exit codes."""
    options = _parser().parse_args(argv)
    given = list(sys.argv[1:] if argv is None else argv)
    return terminal.run(lambda: _dispatch(options, given))


def _parser() -> argparse.ArgumentParser:
    parser = terminal.parser(
        "suite",
        "Measure a suite of adaptive routers on this machine, each number beside its prediction.",
        "mixtral --only ada-k --time-budget '3 min'",
    )
    parser.add_argument("suite", nargs="?", help="a shipped suite (--list) or a TOML file")
    parser.add_argument("--list", action="store_true", help="list the shipped suites")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the cases with predicted time and memory"
    )
    parser.add_argument(
        "--predict", metavar="HARDWARE", help="only predict, for a machine that is not here"
    )
    terminal.add_device(parser)
    parser.add_argument("--layers", type=int, metavar="N", help="layers run in each step")
    parser.add_argument(
        "--only", action="append", default=[], metavar="ROUTER", help="this router and the baseline"
    )
    parser.add_argument(
        "--experts",
        metavar="NAME[,NAME]",
        type=lambda names: tuple(dict.fromkeys(names.split(","))),
        default=(),
        help="expert backends instead of the suite's",
    )
    parser.add_argument(
        "--eager",
        action="store_true",
        help="no CUDA graphs: decode on a GPU is one where its expert backend can be captured",
    )
    parser.add_argument(
        "--full", action="store_true", help="suite experts: the whole grid, without a time budget"
    )
    parser.add_argument(
        "--time-budget", metavar="TIME", help="wall time of all cells together, e.g. '8 min'"
    )
    parser.add_argument(
        "--energy",
        choices=("quick", "full", "off"),
        default="quick",
        help="quick: about 9 s a case where there is a counter; full: about 40 s",
    )
    parser.add_argument("--out", type=Path, default=Path("results"), help="where runs are kept")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="take up a run's directory")
    parser.add_argument("--recalibrate", action="store_true", help="measure the machine again")
    parser.add_argument(
        "--write-hardware", metavar="NAME", help="print this machine as a hardware file"
    )
    return parser


def _dispatch(options: argparse.Namespace, argv: list[str]) -> int:
    if options.list:
        return _list(options.json)
    if options.layers is not None and options.layers < 1:
        raise ValueError(f"--layers: found {options.layers}, expected at least 1")
    if options.write_hardware:
        return _write_hardware(options)
    if options.resume:
        options, argv = _resumed(options)
    if options.suite is None:
        raise ValueError(f"which suite? known: {', '.join(suite_names())}, or a TOML file")
    if suite_kind(suite_path(options.suite)) == "experts":
        from moebench.suite.experts_loop import run_experts_suite

        signal.signal(signal.SIGTERM, _terminate)
        return run_experts_suite(options, argv)
    if options.full:
        raise ValueError("--full: only for a suite of expert backends")
    kept = load_run(options.resume) if options.resume else None
    suite = load_suite(options.suite)
    if kept is not None and suite.text_sha256 != kept.manifest.suite_sha256:
        raise ValueError(
            f"{options.resume}: was started with another version of suite "
            f"{kept.manifest.suite!r}; its text has changed since"
        )
    if options.predict:
        return _predict(options, suite)
    return _measure(options, suite, kept, argv)


def _resumed(options: argparse.Namespace) -> tuple[argparse.Namespace, list[str]]:
    """The options of the run to resume, which say what it measures, and its command line."""
    argv = recorded_arguments(options.resume)
    resumed = _parser().parse_args(argv)
    resumed.resume, resumed.json = options.resume, options.json or resumed.json
    resumed.time_budget = options.time_budget or resumed.time_budget
    return resumed, argv


def _list(as_json: bool) -> int:
    suites = {name: suite_title(suite_path(name)) for name in suite_names()}
    if as_json:
        terminal.show_json(suites)
    else:
        width = max(map(len, suites))
        terminal.show("\n".join(f"{name:{width}}  {title}" for name, title in suites.items()))
    return 0


def _write_hardware(options: argparse.Namespace) -> int:
    from moebench.calibrate.machine import hardware_toml
    from moebench.measure.devices import choose_device

    device = choose_device(options.device)
    dtype = load_suite(options.suite).file.dtype if options.suite else "bfloat16"
    machine = _machine(options, device, dtype)
    print(hardware_toml(machine.hardware, options.write_hardware), end="")
    return 0


def _machine(options: argparse.Namespace, device: "torch.device", dtype: str) -> "Machine":
    """The machine, calibrated; a progress bar shows while it is."""
    from moebench.calibrate.machine import CALIBRATION_BUDGET, prepare_machine

    with terminal.Bar(CALIBRATION_BUDGET) as bar:
        return prepare_machine(
            device, dtype, recalibrate=options.recalibrate, say=terminal.say, progress=bar
        )


def _predict(options: argparse.Namespace, suite: Suite) -> int:
    """The predicted columns for a named machine; nothing is built."""
    hardware = load_hardware(options.predict)
    planned = _planned(options, suite, hardware.kind)
    calibration = from_datasheet(hardware, suite.file.dtype)
    estimates = forecast_cells(planned, suite.model, calibration)
    records = predictions("predicted", planned, estimates)
    if options.json:
        terminal.show_json([encode(record) for record in records])
    else:
        terminal.show(render_text(predicted_table(records)))
        terminal.show(f"\npredicted for {hardware.title}; calibration: {calibration.name}")
    return 0


def _planned(options: argparse.Namespace, suite: Suite, kind: Kind) -> tuple[Cell, ...]:
    """The cells that the command line asks for."""
    return cells(suite, kind, options.layers, options.only, options.experts, options.eager)


def _dry_run(
    options: argparse.Namespace, records: Sequence[Record], hardware: HardwareSpec, budget: Seconds
) -> int:
    """What would run, with predicted time and memory."""
    if options.json:
        terminal.show_json([encode(record) for record in records])
    else:
        terminal.show(render_text(predicted_table(records)))
        rounds = sum(record.estimate.latency for record in records)
        terminal.show(
            f"\n{len(records)} cases on {hardware.title}; one round of all takes "
            f"{text(rounds, 'time')}, the budget is {text(budget, 'time')}"
        )
    return 0


def _measure(
    options: argparse.Namespace, suite: Suite, kept: KeptRun | None, argv: list[str]
) -> int:
    """Measure the suite on this machine, or what is left of a run."""
    from moebench.measure.devices import choose_device
    from moebench.suite.runnable import runnable_cells

    if suite.file.dtype == "float8":
        raise ValueError(
            f"suite {suite.name}: dtype: float8 is predicted (--predict) and not executed"
        )
    device = choose_device(options.device)
    kind: Kind = "gpu" if device.type == "cuda" else "cpu"
    planned, notes = runnable_cells(
        _planned(options, suite, kind), device, is_asked=bool(options.experts)
    )
    budget = _budget(options, suite, kind)
    if kept is None and not options.dry_run:
        make_folder(options.out)
    for line in notes:
        terminal.say(line)
    signal.signal(signal.SIGTERM, _terminate)
    machine = _machine(options, device, suite.file.dtype)
    estimates = forecast_cells(planned, suite.model, machine.calibration)
    if options.dry_run:
        records = predictions("dry run", planned, estimates)
        return _dry_run(options, records, machine.hardware, budget)
    if kept is None:
        manifest = _manifest(suite, planned, machine, argv, budget)
        run = Run.create(options.out, manifest)
    else:
        if kept.manifest.environment.get("fingerprint") != machine.environment.fingerprint:
            raise ValueError(
                f"{kept.directory}: was measured on another machine or with other software "
                f"({kept.manifest.machine}); a run cannot mix two"
            )
        run = Run.open(kept.directory)
        for problem in run.kept.problems:
            terminal.say(f"note: {problem}")
    with run:
        run.write_predictions(predictions(run.manifest.run, planned, estimates))
        try:
            campaign.measure_cells(run, suite, planned, machine, device, budget, options.energy)
            run.finish("done")
        except BaseException:
            command = shlex.join(["python", "-m", "moebench.suite", "--resume", str(run.directory)])
            terminal.say(f"stopped; what was measured is kept, go on with: {command}")
            raise
    return _report(run.directory, options.json)


def _report(directory: Path, as_json: bool) -> int:
    """Write the report of a finished run and print its table."""
    from moebench.report.output import terminal_report, write_report

    kept = load_run(directory)
    write_report(kept)
    if as_json:
        terminal.show_json(
            {
                "directory": str(directory),
                "records": encode(kept.records),
                "failures": encode(kept.failures),
            }
        )
    else:
        terminal.show(terminal_report(kept))
    return 3 if kept.failures else 0


def _manifest(
    suite: Suite, planned: Sequence[Cell], machine: "Machine", argv: list[str], budget: Seconds
) -> Manifest:
    environment = machine.environment
    software = environment.software
    commit = software.commit
    if commit is not None and software.dirty:
        commit = f"{commit}-dirty"
    started = datetime.now(UTC)
    floor = kept_noise_floor(environment.fingerprint)
    return Manifest(
        run=run_id(started, (software.commit or f"v{VERSION}")[:9]),
        suite=suite.name,
        suite_sha256=suite.text_sha256,
        title=suite.file.title,
        command=shlex.join(["python", "-m", "moebench.suite", *argv]),
        argv=tuple(argv),
        machine=machine.hardware.title,
        environment=encode(environment),
        hardware=machine.hardware,
        calibration=encode(machine.calibration),
        device=environment.device,
        dtype=suite.file.dtype,
        versions={
            "moebench": software.moebench,
            "torch": software.torch,
            "python": software.python,
            "numpy": software.numpy,
        },
        commit=commit,
        seed=suite.file.seed,
        baseline=planned[0].baseline.router.title,
        budget=budget,
        cells=tuple(
            PlannedCell(cell.key, tuple(case.key for case in cell.cases)) for cell in planned
        ),
        started_at=started.isoformat(timespec="seconds"),
        noise_floor=None if floor is None else floor.half_width,
    )


def _budget(options: argparse.Namespace, suite: Suite, kind: Kind) -> Seconds:
    if options.time_budget is None:
        return suite.device_plan(kind).time_budget
    try:
        return quantity(options.time_budget, "time")
    except ValueError as error:
        raise ValueError(f"--time-budget: {error}") from error


def _terminate(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
