"""Caveats that the rounds of a cell give all of its cases."""

from dataclasses import replace

import pytest
from runs import FEW, manifest, measured_cell

from moebench.measure.latency import Rounds
from moebench.records.host import HostLoad, RoundLoad
from moebench.records.measurement import READ_BYTES, Measurement, Reference
from moebench.suite.caveats import round_caveats, state_caveats

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
