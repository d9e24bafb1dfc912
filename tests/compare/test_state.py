"""Two runs on a host that reads memory at 48 GB/s in one and at 27 GB/s in the other."""

from dataclasses import replace

import numpy as np
import pytest
from runs import timed, without_reference

from moebench.compare.noise import UnchangedRun, UnchangedRuns
from moebench.compare.runs import Comparison, compare_runs
from moebench.records.host import HostLoad, RoundLoad
from moebench.records.measurement import READ_BYTES, Reference
from moebench.records.run import Run
from moebench.validate.own_run import score_run, score_text

FAST, SLOW = READ_BYTES / 48e9, READ_BYTES / 27e9
"""Seconds of the reference's pass over memory in each state."""
PRODUCT = 4e-3
"""Seconds of its matrix product, in both."""
KNOWN = UnchangedRuns(
    "f00d",
    tuple(
        UnchangedRun("2026", None, 1, {"case": float(value)}, by_parts=by_parts)
        for by_parts in (True, False)
        for value in 0.01 * np.linspace(-1, 1, 10)
    ),
)


def in_state(reading: float, factor: float = 1.0, has_parts: bool = True) -> Run:
    """A run in one state: half of its cases stream weights, the others compute."""
    run = timed(1)
    records = []
    for place, record in enumerate(run.records):
        assert record.measurement is not None and record.measurement.reference is not None
        streams = place % 2 == 0
        change = factor * (reading / FAST if streams else 1.0)
        samples = tuple(replace(s, seconds=s.seconds * change) for s in record.measurement.samples)
        whole = tuple(
            replace(s, seconds=reading + PRODUCT) for s in record.measurement.reference.samples
        )
        reference = Reference(1, whole, (reading,) * len(whole) if has_parts else None)
        moved, flops = (READ_BYTES, 1.0) if streams else (1.0, 1e12)
        records.append(
            replace(
                record,
                estimate=replace(record.estimate, bytes_moved=moved, flops=flops),
                measurement=replace(record.measurement, samples=samples, reference=reference),
            )
        )
    return replace(run, records=tuple(records))


def compared(a: Run, b: Run) -> Comparison:
    return compare_runs(a, b, KNOWN)


def test_the_state_of_the_host_is_no_change_of_the_code_and_is_named() -> None:
    for other, back in ((SLOW, FAST), (FAST, SLOW)):
        found = compared(in_state(back), in_state(other))
        assert {change.verdict for change in found.changes} == {"same"}
        assert [change.value for change in found.changes] == pytest.approx([1] * 10, abs=1e-6)
        (label,) = found.labels
        speeds = {FAST: "48.0 GB/s", SLOW: "27.0 GB/s"}
        assert f"{speeds[back]} in A and at {speeds[other]} in B" in label


def test_slower_code_is_found_across_two_states() -> None:
    found = compared(in_state(FAST), in_state(SLOW, factor=1.15))
    assert len(found.regressions) == 10
    assert [change.value for change in found.changes] == pytest.approx([1.15] * 10, rel=1e-6)


def test_the_whole_operation_divides_runs_that_did_not_time_its_parts() -> None:
    """It cannot tell memory from arithmetic: both kinds of case seem to have changed."""
    found = compared(in_state(FAST, has_parts=False), in_state(SLOW))
    values = [change.value for change in found.changes]
    whole = (SLOW + PRODUCT) / (FAST + PRODUCT)
    assert values == pytest.approx([48 / 27 / whole, 1 / whole] * 5, rel=1e-6)
    assert found.labels == ()


def test_one_state_needs_no_label() -> None:
    assert compared(in_state(FAST), in_state(FAST)).labels == ()
    assert compared(in_state(FAST), in_state(1.1 * FAST)).labels == ()


def test_noise_between_runs_is_that_of_the_same_division() -> None:
    runs = KNOWN.runs[:10]
    found = compare_runs(in_state(FAST), in_state(SLOW), replace(KNOWN, runs=runs))
    assert found.deviation_between_runs is not None
    found = compare_runs(in_state(FAST, has_parts=False), in_state(SLOW), replace(KNOWN, runs=runs))
    assert found.deviation_between_runs is None


def test_a_prediction_for_the_other_state_is_right_once_the_state_is_divided_out() -> None:
    run = in_state(SLOW)
    records = []
    for record in run.records:
        assert record.measurement is not None
        seconds = [s.seconds / s.num_steps for s in record.measurement.samples]
        value = sum(seconds) / len(seconds)
        fast = value * (FAST / SLOW if record.estimate.bytes_moved == READ_BYTES else 1)
        latency = replace(record.measurement.latency, value=value)
        records.append(
            replace(
                record,
                estimate=replace(record.estimate, latency=fast),
                measurement=replace(record.measurement, latency=latency),
            )
        )
    calibration = {"reference": FAST + PRODUCT, "reference_reading": FAST}
    manifest = replace(run.manifest, calibration=calibration)
    score = score_run(replace(run, records=tuple(records), manifest=manifest), in_state(SLOW))
    assert score.predicted.p90 == pytest.approx(1 - 27 / 48, abs=0.01)
    assert score.predicted_divided is not None and score.predicted_divided.p90 < 0.03
    assert score.measured_earlier_divided is not None
    assert score.measured_earlier_divided.p90 < 1e-6


def test_runs_without_a_reference_have_no_state() -> None:
    old = without_reference(in_state(FAST))
    found = compare_runs(old, without_reference(in_state(SLOW)), KNOWN)
    assert found.labels[0] == "latencies are not divided by a reference operation"
    assert len(found.labels) == 2


def test_runs_on_a_busy_machine_are_labelled() -> None:
    busy = HostLoad(2, 2, (RoundLoad(0, 1.0, 0.5, 2.0, 0.0, 1.0),))
    run = in_state(FAST)
    records = []
    for record in run.records:
        assert record.measurement is not None
        records.append(replace(record, measurement=replace(record.measurement, host=busy)))
    loaded = replace(run, records=tuple(records))
    (label,) = compared(run, loaded).labels
    assert label.startswith("B was measured on a busy machine in 2 of 2 cells (3.5 of 2 processors")
    manifest = replace(run.manifest, calibration={})
    score = score_run(replace(loaded, manifest=manifest), run)
    assert score.notes == (label.replace("B was", "the run was"),)
    assert f"note: {score.notes[0]}" in score_text(score)
    assert score_run(replace(run, manifest=manifest), None).notes == ()
