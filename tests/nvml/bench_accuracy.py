"""Errors of the measured joules, over random loads and boards whose joules are known exactly.

Run by `python tests/bench_instruments.py accuracy`. The method was made without looking at these
traces (seeds from 10,000).
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from nvml.loads import Case, Outcome, play, random_case
from nvml.simulator import Simulator, compile_library

from moebench.measure.energy.result import FULL, QUICK, EnergyPlan
from moebench.report.document import Grid, markdown

KINDS = ("steady", "drift", "periodic", "bursts")
FIRST_SEED = 10_000
TRACES = 300
"""Traces of each kind, on boards of every sort."""
TICK = 0.1
TRACES_AT_TICK = 200
PROMISED = (("steady", 1.0), ("periodic", 0.25))
"""Load, and share of the time that the sensor looks: a test holds these errors."""
PUBLISHED = (("steady", 1.0), ("steady", 0.25), ("periodic", 1.0), ("periodic", 0.25))


def outcomes(simulator: Simulator, cases: list[Case]) -> list[Outcome]:
    found = [play(simulator, case) for case in cases]
    missing = [outcome.energy.missing for outcome in found if outcome.energy.joules is None]
    assert not missing, missing
    return found


def p95(errors: list[float]) -> float:
    return float(np.quantile(np.abs(errors), 0.95))


def at_100_ms(kind: str, plan: EnergyPlan, duty: float) -> list[Case]:
    """Random loads on boards that tick every 100 ms and look `duty` of the time."""
    cases = []
    for seed in range(FIRST_SEED, FIRST_SEED + TRACES_AT_TICK):
        case = random_case(seed, kind, plan, TICK)
        settings = {k: v for k, v in case.settings.items() if not k.startswith("sensor")}
        if duty < 1:
            phase = float(np.random.default_rng(seed).uniform(0, 0.1))
            settings |= {"sensor_window": 0.1 * duty, "sensor_phase": phase}
        cases.append(replace(case, settings=settings))
    return cases


def figures(simulator: Simulator, at_tick: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Errors (95th percentiles) and coverage of the stated 95 % interval, all relative.

    Args:
        simulator: fresh.
        at_tick: loads and sensors of the errors at a tick of 100 ms.
    """
    found: dict[str, float] = {}
    covered: list[bool] = []
    for kind in KINDS:
        cases = [random_case(seed, kind) for seed in range(FIRST_SEED, FIRST_SEED + TRACES)]
        measured = outcomes(simulator, cases)
        covers = [outcome.covers for outcome in measured]
        covered += covers
        found[f"any board, {kind}: covered"] = float(np.mean(covers))
        found[f"any board, {kind}: p95"] = p95([outcome.error for outcome in measured])
    found["any board, any load: covered"] = float(np.mean(covered))
    found["any board, any load: traces"] = len(covered)
    for kind, duty in at_tick:
        for plan in (QUICK, FULL):
            measured = outcomes(simulator, at_100_ms(kind, plan, duty))
            name = f"100 ms tick, {kind}, sensor {duty:.0%}"
            singles = [joules / o.truth - 1 for o in measured for joules in o.energy.windows]
            found[f"{name}, one window of {plan.length:.0f} s: p95"] = p95(singles)
            errors = [outcome.error for outcome in measured]
            found[f"{name}, {plan.windows} x {plan.length:.0f} s: p95"] = p95(errors)
    return found


def measure(at_tick: Sequence[tuple[str, float]] = PUBLISHED) -> dict[str, float]:
    """The published figures, from a simulator compiled for them."""
    with tempfile.TemporaryDirectory() as folder:
        return figures(Simulator(compile_library(Path(folder))), at_tick)


def table(record: Mapping[str, float]) -> str:
    """The figures in Markdown."""
    rows = [(what, f"{n:g}" if n > 1 else f"{n:.3%}") for what, n in record.items()]
    return markdown([Grid(("figure", "value"), rows)])
