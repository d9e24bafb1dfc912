"""A suite of routers: predicted for any machine, or measured on this one beside its predictions."""

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from moebench import terminal
from moebench.compare.noise import load_noise_floor
from moebench.files import OutputError, make_folder
from moebench.predict.layers.calibration import from_datasheet
from moebench.predict.learned import asked_point, check_learned
from moebench.predict.serving.counts import model_caveats
from moebench.records.manifest import Manifest, PlannedCell, run_id
from moebench.records.record import Record
from moebench.records.run import Run, RunWriter, load_run
from moebench.report.cases import predicted_table
from moebench.report.table import render_text
from moebench.spec.hardware import load_hardware
from moebench.spec.schema import encode
from moebench.suite.forecast import forecast_cells, predictions
from moebench.suite.plan import Cell, CellChoice, Effort, cells, runnable_cells
from moebench.suite.source import SuiteSource
from moebench.suite.suite_file import DeviceKind, Suite, load_suite, suite_tables
from moebench.units import Seconds, text

if TYPE_CHECKING:
    import torch

    from moebench.calibrate.machine import Machine


MOST_CALIBRATION: Seconds = 160.0
LEAST_CALIBRATION: Seconds = 60.0
"""Waiting for a quiet machine and calibrating it take a quarter of the time budget, between these
two; a budget below twice the least does not pay for it."""


def run_routers_suite(options: argparse.Namespace, source: SuiteSource, argv: Sequence[str]) -> int:
    """Predict the suite, or measure it here or what is left of a run; 3 if a case failed."""
    if options.full:
        raise ValueError("--full: only for a suite of expert backends")
    resumed = load_run(options.resume) if options.resume else None
    suite = _suite(options, source, resumed)
    for described in suite.models.values():
        for caveat in model_caveats(described):
            terminal.say(f"warning: {caveat.sentence}")
    if options.predict:
        return _predict(options, suite)
    return _measure(options, suite, resumed, argv)


def _suite(options: argparse.Namespace, source: SuiteSource, resumed: Run | None) -> Suite:
    """The suite, with the layers of the checkpoint that is asked for in place of its model's."""
    if not options.checkpoint:
        return load_suite(source)
    from moebench.measure.devices import choose_device
    from moebench.suite.checkpoint import asked_checkpoint

    if options.predict:
        kind = load_hardware(options.predict).kind
    else:
        kind = "gpu" if choose_device(options.device).type == "cuda" else "cpu"
    file = suite_tables(source)
    found = asked_checkpoint(options, source, file, kind)
    if resumed is not None and resumed.manifest.checkpoint != found.use:
        raise ValueError(
            f"{resumed.directory}: checkpoint: found {resumed.manifest.checkpoint}, expected "
            f"{found.use}: the checkpoint has changed since the run was started"
        )
    suite = load_suite(replace(source, models={file.model: found.model}))
    return replace(suite, checkpoint=found)


def write_hardware(options: argparse.Namespace) -> int:
    """Print this machine as a hardware file."""
    from moebench.calibrate.hardware_file import hardware_toml
    from moebench.measure.devices import choose_device

    device = choose_device(options.device)
    dtype = load_suite(options.suite).file.dtype if options.suite else "bfloat16"
    with terminal.Bar(MOST_CALIBRATION) as bar:
        machine = _machine(options, device, dtype, bar)
    terminal.show(hardware_toml(machine.hardware, options.write_hardware).rstrip())
    return 0


def _machine(
    options: argparse.Namespace, device: "torch.device", dtype: str, bar: terminal.Bar
) -> "Machine":
    """The machine, calibrated within a part of the bar's time, or in time added to it."""
    from moebench.calibrate.machine import prepare_machine
    from moebench.calibrate.saved import When

    when: When = "stale"
    if options.recalibrate or options.keep_calibration:
        when = "always" if options.recalibrate else "never"
    budget = bar.expected
    length = min(MOST_CALIBRATION, max(LEAST_CALIBRATION, budget / 4))
    is_paid = length <= budget / 2

    def progress(share: float, what: str) -> None:
        if not is_paid:
            bar.expect(budget + length)
        bar.tell(f"calibration: {what}")

    machine = prepare_machine(
        device, dtype, calibrate=when, budget=length, say=bar.say, progress=progress
    )
    if not is_paid:
        bar.expect(budget + bar.elapsed())
    return machine


def _predict(options: argparse.Namespace, suite: Suite) -> int:
    """The predicted columns for a named machine; nothing is built."""
    hardware = load_hardware(options.predict)
    planned = cells(suite, hardware.kind, _choice(options, suite))
    calibration = from_datasheet(hardware, suite.file.dtype)
    records = predictions("predicted", planned, forecast_cells(planned, suite.model, calibration))
    source = f"predicted for {hardware.title}; calibration: {calibration.name}"
    return _show_predicted(records, source, options.json)


def _choice(options: argparse.Namespace, suite: Suite) -> CellChoice:
    learned = asked_point(options.operating_point, options.strict)
    if learned is not None:
        names = [own.name for own in suite.policies]
        check_learned(learned, names, suite.model, is_strict=options.strict)
    only, layers = tuple(options.only), options.layers
    if suite.checkpoint is not None:
        layers = len(suite.checkpoint.layers)
    return CellChoice(layers, only, options.experts, learned, options.eager)


def _show_predicted(records: Sequence[Record], source: str, as_json: bool) -> int:
    """Print predicted records and what they rest on; nothing was measured."""
    if as_json:
        terminal.show_json([encode(record) for record in records])
    else:
        terminal.show(render_text(predicted_table(records)))
        terminal.show(f"\n{source}")
    return 0


def _measure(
    options: argparse.Namespace, suite: Suite, resumed: Run | None, argv: Sequence[str]
) -> int:
    """Measure the suite on this machine, or what is left of a run."""
    from moebench.measure.devices import DeviceLostError, choose_device, make_current
    from moebench.measure.memory import available_memory
    from moebench.suite.feasible import check_feasible
    from moebench.suite.loop import measure_cells

    if suite.file.dtype == "float8":
        raise ValueError(
            f"suite {suite.name}: dtype: float8 is predicted (--predict) and not executed"
        )
    device = choose_device(options.device)
    make_current(device)
    kind: DeviceKind = "gpu" if device.type == "cuda" else "cpu"
    asked = cells(suite, kind, _choice(options, suite))
    planned, notes = runnable_cells(asked, device, suite.model, is_asked=bool(options.experts))
    check_feasible(suite, planned, available_memory(device))
    if resumed is None and not options.dry_run:
        make_folder(options.out)
    for line in notes:
        terminal.say(line)
    budget = options.time_budget or suite.device_plan(kind).time_budget
    with terminal.Bar(budget) as bar:
        machine = _machine(options, device, suite.file.dtype, bar)
        estimates = forecast_cells(planned, suite.model, machine.calibration)
        if options.dry_run:
            records = predictions("dry run", planned, estimates)
            seconds = sum(record.estimate.latency for record in records)
            source = (
                f"{len(records)} cases on {machine.hardware.title}; one round of all takes "
                f"{text(seconds, 'time')}, the budget is {text(budget, 'time')}"
            )
            return _show_predicted(records, source, options.json)
        if resumed is None:
            manifest = _manifest(suite, planned, machine, argv, budget)
            run = RunWriter.create(options.out, manifest)
        else:
            run = _opened(resumed, machine)
            for problem in run.content.problems:
                bar.say(f"note: {problem}")
        effort = Effort(suite.file.plan, options.energy, bar)
        try:
            with run:
                run.write_predictions(predictions(run.manifest.run, planned, estimates))
                measure_cells(run, suite, planned, machine, effort)
                run.finish("done")
        except BaseException as error:
            if resumed is None and run.is_empty and _is_bad_input(error):
                run.remove(below=options.out)
                raise
            directory = str(run.directory.absolute())
            command = shlex.join(["python", "-m", "moebench.suite", "--resume", directory])
            bar.say(f"stopped; what was measured is kept, go on with: {command}")
            if not isinstance(error, DeviceLostError):
                raise
            bar.say(f"error: {error}")
            return 3
        bar.tell("report")
        return _report(run.directory, options.json)


def _opened(resumed: Run, machine: "Machine") -> RunWriter:
    """The run to take up; refuses one of another machine."""
    if resumed.manifest.fingerprint != machine.environment.fingerprint:
        raise ValueError(
            f"{resumed.directory}: was measured on another machine or with other software "
            f"({resumed.manifest.machine}); a run cannot mix two"
        )
    return RunWriter.open(resumed.directory)


def _is_bad_input(error: BaseException) -> bool:
    """Whether the same command would fail again, which no full disk or Ctrl-C says."""
    return isinstance(error, ValueError) and not isinstance(error, OutputError)


def _report(directory: Path, as_json: bool) -> int:
    """Write and print the report of a run, unless it is simulated; 3 if a case failed to run."""
    from moebench.report.output import terminal_report, write_report

    run = load_run(directory)
    simulated = sum(record.provenance == "simulated" for record in run.records)
    if not simulated:
        terminal.write_beside(lambda: write_report(run))
    if as_json:
        records, failures = encode(run.records), encode(run.failures)
        terminal.show_json({"directory": str(directory), "records": records, "failures": failures})
    elif simulated:
        terminal.show(f"{simulated} records, simulated: they enter no report → {directory}")
    else:
        terminal.show(terminal_report(run))
    return 3 if any(failure.kind != "left-out" for failure in run.failures) else 0


def _manifest(
    suite: Suite, planned: Sequence[Cell], machine: "Machine", argv: Sequence[str], budget: Seconds
) -> Manifest:
    environment = machine.environment
    software, started = environment.software, datetime.now(UTC)
    floor = load_noise_floor(environment.fingerprint)
    return Manifest(
        run=run_id(started, software.commit),
        suite=suite.name,
        suite_sha256=suite.source.sha256,
        suite_text=suite.source.text,
        models=suite.models,
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
            name: getattr(software, name) for name in ("moebench", "torch", "python", "numpy")
        },
        commit=software.commit and f"{software.commit}{'-dirty' if software.dirty else ''}",
        seed=suite.file.seed,
        baseline=planned[0].baseline.router.title,
        budget=budget,
        checkpoint=None if suite.checkpoint is None else suite.checkpoint.use,
        cells=tuple(PlannedCell(c.key, tuple(case.key for case in c.cases)) for c in planned),
        started_at=started.isoformat(timespec="seconds"),
        noise_floor=None if floor is None else floor.half_width,
    )
