"""How right the joules are, over random loads and boards whose joules are known exactly.

The published figures come from the slow test; its traces were never looked at while the method was
made (that used seeds below 1000).
"""

import numpy as np
import pytest
from nvml.loads import QUICK, Case, Outcome, play, random_case
from nvml.simulator import Simulator

from moebench.measure.energy_result import FULL, EnergyPlan

KINDS = ("steady", "drift", "periodic", "bursts")
FIRST_SEED = 10_000


def outcomes(simulator: Simulator, cases: list[Case]) -> list[Outcome]:
    found = [play(simulator, case) for case in cases]
    missing = [outcome.energy.missing for outcome in found if outcome.energy.joules is None]
    assert not missing, missing
    return found


def p95(errors: list[float]) -> float:
    return float(np.quantile(np.abs(errors), 0.95))


def windows_off(found: list[Outcome]) -> list[float]:
    """Error of every single window."""
    return [joules / o.truth - 1 for o in found for joules in o.energy.windows]


def full_sensor(case: Case) -> Case:
    settings = {k: v for k, v in case.settings.items() if not k.startswith("sensor")}
    return Case(case.load, settings, case.plan, case.seed)


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_random_traces_are_measured_well(simulator: Simulator, kind: str) -> None:
    found = outcomes(simulator, [random_case(seed, kind) for seed in range(1000, 1005)])
    assert np.median(np.abs([outcome.error for outcome in found])) < 0.01
    assert all(outcome.energy.provenance == "simulated" for outcome in found)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_interval_of_95_percent_holds_the_truth_in_93_to_97_percent_of_1200_traces(
    simulator: Simulator, record_property: pytest.RecordProperty
) -> None:
    by_kind = {
        kind: outcomes(simulator, [random_case(FIRST_SEED + seed, kind) for seed in range(300)])
        for kind in KINDS
    }
    for kind, found in by_kind.items():
        share = np.mean([outcome.covers for outcome in found])
        errors = [outcome.error for outcome in found]
        line = f"{kind}: p95 error {p95(errors):.2%}, covered {share:.1%}"
        print(line)
        record_property(kind, line)
    everything = [outcome for found in by_kind.values() for outcome in found]
    covered = float(np.mean([outcome.covers for outcome in everything]))
    print(f"all {len(everything)}: covered {covered:.1%}")
    assert 0.93 <= covered <= 0.97


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("plan", "kind", "part_time", "one_window", "all_windows"),
    [
        # Steady loads: 0.5 % at 1 s, 0.1 % at 5 s.
        (QUICK, "steady", False, 0.005, 0.005),
        (FULL, "steady", False, 0.001, 0.001),
        # A part-time sensor that beats with the load: 2 % at 5 s, here 5 windows of 1 s.
        (QUICK, "periodic", True, None, 0.02),
        (FULL, "periodic", True, None, 0.02),
    ],
    ids=["steady-1s", "steady-5s", "periodic-5x1s", "periodic-5x5s"],
)
def test_errors_stay_below_what_is_promised_at_a_tick_of_100_ms(
    simulator: Simulator,
    plan: EnergyPlan,
    kind: str,
    part_time: bool,
    one_window: float | None,
    all_windows: float,
) -> None:
    cases = [random_case(FIRST_SEED + seed, kind, plan, tick=0.1) for seed in range(150)]
    cases = [full_sensor(case) for case in cases]
    if part_time:
        for case in cases:
            case.settings.update(
                {"sensor_window": 0.025, "sensor_phase": 0.1 * (case.seed % 97) / 97}
            )
    found = outcomes(simulator, cases)
    each, together = p95(windows_off(found)), p95([outcome.error for outcome in found])
    print(f"{kind}, {plan.windows} x {plan.length} s: one {each:.3%}, all {together:.3%}")
    assert together <= all_windows
    if one_window is not None:
        assert each <= one_window
