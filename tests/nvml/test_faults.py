"""Every fault ends in joules that are right, or in none and the reason; never in between."""

from pathlib import Path

import pytest
from nvml.faults import FAULTS, JOULES, FaultCase, run_fault
from nvml.simulator import Simulator, compile_library

from moebench.records.energy import Energy

TABLE = Path(__file__).with_name("faults.md")
IS_A_FAULT = [f for f in FAULTS if f.outcome != "joules" or f.kind is not None]


@pytest.fixture(scope="session")
def without_energy(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_library(tmp_path_factory.mktemp("without"), "-DWITHOUT_ENERGY")


def kinds(energy: Energy) -> set[str]:
    return {caveat.kind for caveat in energy.caveats}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_a_fault_has_a_typed_outcome_that_the_user_sees(
    fault: FaultCase, simulator: Simulator, request: pytest.FixtureRequest
) -> None:
    if fault.defines:
        simulator.unbind()
        simulator = Simulator(request.getfixturevalue("without_energy"))
    energy = run_fault(simulator, fault)
    simulator.unbind()
    if fault.outcome == "none":
        assert energy.joules is None
        assert energy.net_joules is None
        assert energy.low is None
        assert energy.missing
        assert energy.fault == fault.kind
        return
    assert energy.missing is None
    assert energy.joules == pytest.approx(JOULES, rel=fault.tolerance)
    assert energy.low <= energy.joules <= energy.high
    assert energy.net_joules == pytest.approx(JOULES * 210 / 300, rel=2 * fault.tolerance)
    if fault.outcome == "polled":
        assert energy.fault == fault.kind
        assert "polled" in energy.method
        assert "polled-power" in kinds(energy)
        # Twice the published error of such an integral, and so much wider than a counter's.
        assert energy.high - energy.joules > 0.03 * energy.joules
    else:
        assert energy.fault is None
        assert energy.method.startswith("energy counter")
        assert energy.high - energy.joules < 0.01 * energy.joules
        assert kinds(energy) == ({fault.kind} if fault.kind else set())


def test_there_are_forty_faults_and_more_each_with_a_name_of_its_own() -> None:
    assert len(IS_A_FAULT) >= 40
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


def test_the_kept_table_has_every_fault() -> None:
    rows = [line.split(" | ") for line in TABLE.read_text().splitlines() if line.startswith("| ")]
    listed = [(name.removeprefix("| "), kind) for name, kind, *_ in rows[1:]]
    assert listed == [(fault.name, fault.kind or "none") for fault in FAULTS]


def test_what_a_record_of_energy_must_say_is_in_it(simulator: Simulator) -> None:
    fault = next(f for f in FAULTS if f.name == "thermal throttling")
    energy = run_fault(simulator, fault)
    simulator.unbind()
    conditions = energy.conditions
    assert conditions["driver"] == "999.0-sim"
    assert conditions["power_limit_w"] == 700
    assert conditions["ecc"] is True
    assert conditions["mig"] is False
    assert conditions["persistence"] is True
    assert conditions["sm_clock_hz"] == dict.fromkeys(("start", "end", "min", "max"), 1755e6)
    assert conditions["temperature_c"]["max"] == 40
    assert conditions["throttled_s"]["hw-thermal"] == pytest.approx(2.0)
    assert 0.1 < conditions["throttle_share"]["hw-thermal"] < 0.4
    assert conditions["mean_call_s"] == pytest.approx(0.002)
    assert energy.tick == pytest.approx(0.1, rel=1e-3)
    assert energy.num_ticks >= 50
    assert energy.idle_power == pytest.approx(90, rel=0.01)
    assert energy.residual == pytest.approx(0, abs=0.01)
    assert energy.provenance == "simulated"


def test_the_gain_of_a_board_is_stated_and_not_part_of_the_interval(simulator: Simulator) -> None:
    energy = run_fault(simulator, next(f for f in FAULTS if f.name == "power-capped throughout"))
    simulator.unbind()
    assert energy.budget is not None
    assert energy.budget.gain == 0.05
    assert (energy.high - energy.joules) / energy.joules < 0.005


def test_a_step_of_the_wall_clock_changes_nothing(
    simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: -1e9)
    energy = run_fault(simulator, next(f for f in FAULTS if f.name == "power-capped throughout"))
    simulator.unbind()
    assert energy.joules == pytest.approx(JOULES, rel=0.005)
