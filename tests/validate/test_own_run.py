"""A run's own predictions, scored against its measurements and an earlier run."""

import math
from dataclasses import replace

import pytest
from runs import timed, without_reference

from moebench.records.run import Run
from moebench.validate.own_run import score_run


def predicted(run: Run, factor: float, reference: float | None = 0.02) -> Run:
    """The run with predictions that are `factor` times what was measured."""
    records = []
    for record in run.records:
        assert record.measurement is not None
        seconds = [s.seconds / s.num_steps for s in record.measurement.samples]
        estimate = replace(record.estimate, latency=factor * sum(seconds) / len(seconds))
        latency = replace(record.measurement.latency, value=sum(seconds) / len(seconds))
        measurement = replace(record.measurement, latency=latency)
        records.append(replace(record, estimate=estimate, measurement=measurement))
    manifest = replace(run.manifest, calibration={"reference": reference})
    return replace(run, records=tuple(records), manifest=manifest)


def test_a_machine_that_became_slower_since_its_calibration_is_divided_out() -> None:
    """It runs at 1.5 times; a prediction right for the calibration's speed is right divided."""
    run = predicted(timed(1, speed=1.5), 1 / 1.5)
    score = score_run(run, None)
    assert score.predicted.median == pytest.approx(1 / 3, abs=0.01)
    assert score.predicted_divided is not None
    assert score.predicted_divided.median < 0.02
    assert score.ratio is None and not score.missed


def test_an_earlier_measurement_is_what_predictions_are_held_against() -> None:
    run, earlier = predicted(timed(1), 1.3), predicted(timed(2, speed=1.1), 1.0)
    score = score_run(run, earlier)
    assert score.measured_earlier is not None and score.ratio is not None
    assert score.measured_earlier.median == pytest.approx(0.1, abs=0.02)
    assert score.ratio == pytest.approx(3.0, rel=0.2)
    assert score.predicted.bias == pytest.approx(0.3, abs=0.01)
    assert score.measured_earlier_divided is not None
    assert score.measured_earlier_divided.median < 0.02
    assert len(score.missed) == 2  # 3.0 times the error, and 30 % divided


def test_without_a_reference_operation_nothing_is_divided() -> None:
    run = predicted(timed(1), 1.0, reference=None)
    assert score_run(run, None).predicted_divided is None
    assert score_run(without_reference(predicted(timed(1), 1.0)), None).predicted_divided is None


def test_an_earlier_run_of_another_machine_is_refused() -> None:
    other = timed(2, change=lambda m: replace(m, machine="another"))
    with pytest.raises(ValueError, match="machine differs"):
        score_run(predicted(timed(1), 1.0), other)


def test_an_error_of_a_factor_is_as_large_as_it_is() -> None:
    score = score_run(predicted(timed(1), math.e), None)
    assert score.predicted.median == pytest.approx(math.e - 1)
    assert score.predicted.n == 10
