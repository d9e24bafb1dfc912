"""Caveats that the rounds of a cell give all of its cases."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from runs import FEW, manifest, measured_cell

from moebench.measure.latency import Rounds
from moebench.records.board import BoardLook, BoardState
from moebench.records.host import HostLoad, RoundLoad
from moebench.records.measurement import READ_BYTES, Measurement, Reference
from moebench.records.run import load_run
from moebench.suite.caveats import round_caveats, state_caveats
from moebench.suite.cli import main

BUSY = HostLoad(2, 2, tuple(RoundLoad(i, 0.5, 0.25, 1.0, 0.0, 0.5) for i in range(12)))


def rounds(host: HostLoad | None) -> Rounds:
    (record, *_) = measured_cell(manifest(FEW), "moe", FEW[0])
    assert record.measurement is not None
    return Rounds({"a": record.measurement.samples}, {}, {}, 4, "budget", 9.0, host=host)


def test_rounds_on_a_busy_machine_carry_the_finding() -> None:
    (caveat,) = round_caveats(rounds(BUSY))
    assert caveat.kind == "busy-machine"
    assert "3.5 of 2 processors wanted" in caveat.seen and "got 25% of its" in caveat.seen
    assert round_caveats(rounds(None)) == ()


def test_rounds_on_a_board_that_was_held_back_say_so_and_a_power_cap_is_no_fault() -> None:
    looks = tuple(
        BoardLook(i, 1.2e9, 2.6e9, 90.0, ("power-cap", *["hw-thermal"] * (i < 3)))
        for i in range(12)
    )
    hot = replace(rounds(None), board=BoardState(looks, {"hw-thermal": 0.5, "power": 9.0}))
    (caveat,) = round_caveats(hot)
    assert caveat.kind == "throttled"
    assert "hw-thermal in 25% of looks, hw-thermal for 500 ms" in caveat.seen
    capped = replace(rounds(None), board=BoardState(looks[3:], {"power": 9.0}))
    assert round_caveats(capped) == ()


def in_state(gigabytes: float, host: HostLoad | None = None) -> Measurement:
    (record, *_) = measured_cell(manifest(FEW), "moe", FEW[0])
    assert record.measurement is not None
    samples = tuple(replace(s, seconds=0.1) for s in record.measurement.samples)
    times = (READ_BYTES / (gigabytes * 1e9),) * len(samples)
    return replace(record.measurement, host=host, reference=Reference(1, samples, times))


@pytest.mark.parametrize(
    ("measured", "predicted", "is_other"), [(48, 27, True), (27, 48, True), (44, 48, False)]
)
def test_a_prediction_for_another_state_of_memory_is_told(
    measured: float, predicted: float, is_other: bool
) -> None:
    found = state_caveats(in_state(measured), READ_BYTES / (predicted * 1e9))
    assert [caveat.kind for caveat in found] == ["memory-state"] * is_other
    if is_other:
        assert f"{measured:.1f} GB/s in these rounds" in found[0].seen
        assert f"is for {predicted:.1f} GB/s" in found[0].seen


def test_on_a_busy_machine_the_state_of_memory_is_not_known() -> None:
    assert state_caveats(in_state(3, BUSY), READ_BYTES / 48e9) == ()
    assert state_caveats(in_state(27), None) == ()


@pytest.mark.usefixtures("calibrated")
def test_a_cell_is_predicted_for_the_state_that_it_meets(
    suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is read at 48 GB/s when the run starts and its first cell, at 27 at the second."""
    (path,) = (Path(os.environ["XDG_CACHE_HOME"]) / "moebench").glob("*-bfloat16.json")
    fast, slow = READ_BYTES / 48e9, READ_BYTES / 27e9
    kept = path.read_text()
    table = json.loads(kept) | {"reference": 2 * fast, "reference_reading": fast}
    path.write_text(json.dumps(table))
    readings = iter((fast, fast, slow))
    monkeypatch.setattr("moebench.calibrate.machine.reading_now", lambda device: next(readings))
    monkeypatch.setattr("moebench.report.output.draw_figures", lambda run: ([], []))
    options = ("--only", "ada-k", "--time-budget", "1 s", "--device", "cpu", "--energy", "off")
    try:
        assert main([suite, *options, "--out", str(tmp_path)]) == 0
    finally:
        path.write_text(kept)
    (directory,) = tmp_path.glob("*/*/*")
    run = load_run(directory)
    first, second = (cell.cases for cell in run.manifest.cells)
    estimates = {record.case.key: record.estimate for record in run.records}
    assert {estimates[key].reference_reading for key in first} == {fast}
    assert {estimates[key].reference_reading for key in second} == {slow}
    assert {p.case.key: p.estimate for p in run.predictions} == estimates
    lines = (directory / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == len(first) + 2 * len(second)
    assert run.problems == ()
