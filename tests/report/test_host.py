"""A report says what the host did: its load, the doubts of its calibration, its memory's speed."""

from dataclasses import replace
from pathlib import Path

from runs import FEW, manifest, measured_cell

from moebench.records.board import BoardLook, BoardState
from moebench.records.checksum import Line
from moebench.records.experts_run import (
    PROBE_WORK,
    ExpertsCell,
    ExpertsManifest,
    ExpertsResult,
    ExpertsRun,
)
from moebench.records.host import HostLoad, RoundLoad
from moebench.records.measurement import READ_BYTES, Reference
from moebench.records.run import Run
from moebench.report.backends import _blocks
from moebench.report.conditions import limits
from moebench.report.document import markdown
from moebench.report.host import board_state, kernel_tiles, memory_state, warnings
from moebench.report.output import terminal_report
from moebench.report.sections import report_blocks

QUIET = HostLoad(2, 2, tuple(RoundLoad(i, 0.5, 0.95, 0.96, 0.0, 0.01) for i in range(12)))
BUSY = HostLoad(2, 2, tuple(RoundLoad(i, 0.5, 0.25, 1.0, 0.0, 0.5) for i in range(12)))
STOLEN = HostLoad(2, 2, tuple(RoundLoad(i, 0.5, 0.7, 0.7, 0.3, 0.0) for i in range(12)))


def run_with(
    *hosts: HostLoad | None, gigabytes: tuple[float, ...] = (), **calibration: object
) -> Run:
    """A run of one cell a host, which read memory at these speeds."""
    plan = replace(manifest(FEW), calibration=calibration)
    records = []
    for place, (host, workload) in enumerate(zip(hosts, FEW, strict=False)):
        for record in measured_cell(plan, "moe", workload):
            assert record.measurement is not None
            reference = None
            if gigabytes:
                samples = tuple(replace(s, seconds=0.02) for s in record.measurement.samples)
                seconds = READ_BYTES / (gigabytes[place] * 1e9)
                reference = Reference(1, samples, (seconds,) * len(samples))
            measurement = replace(record.measurement, host=host, reference=reference)
            records.append(replace(record, measurement=measurement))
    predictions = tuple(replace(r, provenance="predicted", measurement=None) for r in records)
    return Run(Path("run"), plan, predictions, tuple(records), (), ())


def test_a_busy_machine_stands_at_the_head_of_the_report() -> None:
    run = run_with(QUIET, BUSY)
    (line,) = warnings(run)
    assert "busy in 1 of 2 cells (3.5 of 2 processors wanted in the worst)" in line
    assert "got 25% of its threads' time" in line
    head = terminal_report(run).split("MoE layer ·")[0]
    assert "⚠ The machine was busy in 1 of 2 cells" in head
    text = markdown(report_blocks(run, (), ()))
    assert text.index("The machine was busy") < text.index("## Results")


def test_a_host_that_takes_processors_away_is_named() -> None:
    (line,) = warnings(run_with(STOLEN))
    assert "busy in 1 of 1 cells (the host took 30% of the processors' time in the worst)" in line


def test_a_quiet_run_and_an_old_one_have_nothing_to_warn_of() -> None:
    assert warnings(run_with(QUIET, QUIET)) == warnings(run_with(None, None)) == ()
    assert memory_state(run_with(None, None)) == ()
    assert "⚠" not in terminal_report(run_with(QUIET, QUIET))


def test_doubts_of_the_calibration_stand_at_the_head_of_the_report() -> None:
    doubt = {"kind": "poor-calibration", "seen": "its P90 error is 251%", "meaning": "wide"}
    run = run_with(QUIET, doubts=[doubt])
    assert warnings(run) == ("Doubtful: its P90 error is 251%; wide.",)
    text = markdown(report_blocks(run, (), ()))
    assert "its P90 error is 251%" in text and "poor-calibration" not in text


def test_the_state_of_memory_is_named_beside_the_state_of_the_predictions() -> None:
    run = run_with(QUIET, QUIET, gigabytes=(48.0, 27.0), reference_reading=READ_BYTES / 27e9)
    (line,) = memory_state(run)
    assert "27.0 GB/s to 48.0 GB/s by cell" in line
    assert line.endswith("; predictions are for 27.0 GB/s.")
    assert line in terminal_report(run)
    assert memory_state(run_with(BUSY, gigabytes=(7.0,))) == ()


def test_a_report_of_expert_backends_says_which_cells_were_measured_under_load(
    tmp_path: Path,
) -> None:
    plan = ExpertsCell("Mixtral", "mixtral-8x7b", 1, "forward", "bfloat16", 16, ("fixed",))
    limits = {name: [1.0] * 6 for name in PROBE_WORK}
    samples = {"packed": {"fixed": [(i, i, 1.0) for i in range(6)]}}
    cell = ExpertsResult(plan, {"fixed": [(32, 8)]}, samples, limits, {}, {"packed, fixed": 1})
    found = ExpertsManifest(
        run="r",
        suite="experts",
        suite_sha256="0",
        title="Backends",
        command="suite experts",
        environment={},
        started_at="2026",
        backends=("packed",),
        absent={},
        cells=(plan.key,),
    )

    def text(load: HostLoad | None) -> str:
        line = Line(b"", "cells.jsonl line 1", replace(cell, load=load))
        return markdown(_blocks(ExpertsRun(tmp_path, found, (line,))))

    busy = text(BUSY)
    assert "⚠ The machine was busy in 1 of 1 cells" in busy
    assert "⚠ busy-machine: 3.5 of 2 processors wanted; times are poor." in busy
    assert "⚠" not in text(QUIET) and "⚠" not in text(None)


def with_board(run: Run, board: BoardState) -> Run:
    records = []
    for record in run.records:
        assert record.measurement is not None
        records.append(replace(record, measurement=replace(record.measurement, board=board)))
    return replace(run, records=tuple(records))


def test_the_clocks_of_a_board_are_those_of_its_rounds() -> None:
    looks = tuple(
        BoardLook(i, clock, 2.6e9, 60.0, reasons)
        for i, (clock, reasons) in enumerate(
            ((1.98e9, ()), (1.755e9, ("power-cap",)), (1.2e9, ("power-cap", "hw-thermal")))
        )
    )
    run = run_with(QUIET)
    assert board_state(run) == ()
    assert board_state(with_board(run, BoardState(looks))) == (
        "SM clock while the board worked: 1.75 GHz (1.20 GHz to 1.98 GHz by round); "
        "lower clocks by hw-thermal, power-cap.",
    )
    (line,) = board_state(with_board(run, BoardState(missing="no NVML here")))
    assert line == "Clocks of the board are not known: no NVML here."
    (line,) = board_state(with_board(run, BoardState(())))
    assert "does not give its clocks" in line
    assert line in limits(with_board(run, BoardState(())))


def test_the_tiles_of_our_kernels_stand_among_the_limits() -> None:
    run = run_with(QUIET)
    assert kernel_tiles(run) == ()
    first, *rest = run.records
    assert first.measurement is not None
    own = replace(first.measurement, tiles="up 16 x 64 (timed here, 2026-11-29)")
    run = replace(run, records=(replace(first, measurement=own), *rest))
    (line,) = kernel_tiles(run)
    assert line == (
        "Tiles of the expert kernels, by cases: up 16 x 64 (timed here, 2026-11-29) in 1."
    )
    assert line in limits(run)
