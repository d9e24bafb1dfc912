"""Energy passes in the budget of the suite `mixtral` as a GPU would run it."""

import functools
from dataclasses import replace

import pytest
from suite.test_budget import MIN_ROUNDS, inference, run, steady

from moebench.predict.layers.calibration import from_datasheet
from moebench.spec.hardware import load_hardware
from moebench.suite.budget import Budget
from moebench.suite.costs import cell_costs
from moebench.suite.forecast import forecast_cells
from moebench.suite.need import CellCost
from moebench.suite.plan import cells
from moebench.suite.suite_file import load_suite


@functools.cache
def mixtral_on_a_gpu(energy: float) -> list[CellCost]:
    """The suite as it is priced on an H100, with seconds of energy for each of its 100 cases."""
    suite, hardware = load_suite("mixtral"), load_hardware("h100-sxm")
    planned, calibration = cells(suite, "gpu"), from_datasheet(hardware, "bfloat16")
    estimates = forecast_cells(planned, suite.model, calibration)
    costs = cell_costs(planned, suite.model, calibration, estimates, 4096)
    return [
        replace(cost, energy=energy * len(each.cases))
        for each, cost in zip(planned, costs, strict=True)
    ]


@pytest.mark.parametrize("factor", [0.9, 1.0, 1.15])
def test_the_mixtral_suite_with_energy_ends_within_its_budget_on_a_gpu(factor: float) -> None:
    """20 minutes, 15 of which go to energy: with passes that take as long as thought, or longer."""
    costs = mixtral_on_a_gpu(9.0)
    found = run(costs, 1200, steady(1, 1), start=60.0, energy_factor=factor)
    assert found.duration <= 1.02 * 1200
    assert set(found.rounds) == {cost.key for cost in costs} and not any(found.left_out.values())
    assert min(inference(found)) >= MIN_ROUNDS


def test_energy_for_which_there_is_no_time_costs_cells_that_are_named_before_the_first() -> None:
    costs = mixtral_on_a_gpu(9.0)
    found = run(costs, 860, steady(1, 1), start=60.0)
    assert 0 < len(found.left_out[0]) <= len(costs) / 4
    assert found.duration <= 1.02 * 860
    budget = Budget(860, costs, MIN_ROUNDS, started=0.0, clock=lambda: 60.0)
    lines = budget.notes(costs, found.left_out[0], ())
    assert sum(line.startswith("left out: ") for line in lines) == len(found.left_out[0])
    assert "--energy off gives that time to rounds" in lines[-1]
    without = [replace(cost, energy=0.0) for cost in costs]
    budget = Budget(860, without, MIN_ROUNDS, started=0.0, clock=lambda: 60.0)
    assert budget.left_out(without) == [] and budget.notes(without, (), ()) == []


def test_what_energy_passes_took_corrects_those_to_come() -> None:
    costs = mixtral_on_a_gpu(9.0)
    budget = Budget(1200, costs, MIN_ROUNDS, started=0.0, clock=lambda: 60.0)
    before = budget.energy(costs[1])
    budget.set_up(costs[0], costs[0].setup, costs[0].round)
    budget.finish(costs[0].round, 2 * costs[0].energy)
    assert 1.5 * before < budget.energy(costs[1]) <= 2 * before
    assert budget.need(costs[1]).least > 1.5 * before
