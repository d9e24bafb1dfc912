"""Sharing a budget of time, by a clock that runs as fast as the cells that are put on it."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moebench.suite.budget import OVERRUN, REPORT, Budget
from moebench.suite.need import FEWEST_TRAINING_ROUNDS, CellCost, Need, allowance

MIN_ROUNDS = 8
needs = st.lists(
    st.builds(
        lambda least, *more: Need(least, more),
        st.floats(0.1, 9),
        *[st.floats(0.1, 99)] * 3,
    ),
    min_size=1,
    max_size=12,
)


def spend(needs: list[Need], budget: float) -> list[float]:
    """What every cell gets if each spends its allowance to the last second."""
    spent: list[float] = []
    for index in range(len(needs)):
        spent.append(allowance(needs[index:], budget - sum(spent)))
    return spent


@given(needs=needs, budget=st.floats(0.1, 2000))
def test_the_budget_is_used_up_and_overspent_only_by_what_cannot_be_less(
    needs: list[Need], budget: float
) -> None:
    least = sum(need.least for need in needs)
    assert sum(spend(needs, budget)) == pytest.approx(max(budget, least))


@given(needs=needs, factor=st.floats(1, 5))
def test_with_enough_time_every_need_is_met(needs: list[Need], factor: float) -> None:
    budget = factor * sum(need.enough for need in needs)
    for got, need in zip(spend(needs, budget), needs, strict=True):
        assert got >= need.enough * (1 - 1e-9)


def test_cheap_cells_are_met_before_dear_ones() -> None:
    cheap, dear = Need(1, (9, 0, 0)), Need(20, (80, 0, 0))
    assert spend([dear, cheap, dear, cheap], 120) == pytest.approx([80, 10, 20, 10])


def test_the_rounds_of_all_come_before_further_rounds_of_some() -> None:
    quick, slow = Need(1, (1, 0, 50)), Need(1, (30, 0, 0))
    assert spend([quick, slow], 40) == pytest.approx([9, 31])


def test_an_exhausted_budget_allows_a_single_round() -> None:
    assert allowance([Need(1, (4, 0, 0)), Need(2, (7, 0, 0))], -3.0) == 1


@dataclass
class Run:
    """A run on a fake clock: which cells it measured, with how many rounds, and when it ended."""

    rounds: dict[str, int]
    left_out: dict[int, set[str]]
    """Keys of the cells that were left out before each cell."""
    duration: float


Slowness = Callable[[float, CellCost], tuple[float, float]]
"""Real over predicted set-up and round of a cell, at a time of the run."""


def run(
    costs: list[CellCost],
    total: float,
    slowness: Slowness,
    start: float = 0.0,
    energy_factor: float = 1.0,
) -> Run:
    """Measure cells that cost what was predicted times `slowness`, as the suite's loop does."""
    now = start
    budget = Budget(total, costs, MIN_ROUNDS, started=0.0, clock=lambda: now)
    waiting = {cost.key: cost for cost in costs}
    rounds: dict[str, int] = {}
    left_out = {0: {cost.key for cost in budget.left_out(costs)}}
    out = left_out[0]
    while key := next((key for key in waiting if key not in out), None):
        cost = waiting.pop(key)
        later = [c for k, c in waiting.items() if k not in out]
        setup, each = slowness(now, cost)
        setup, each = setup * cost.setup, each * cost.round
        now += setup
        budget.set_up(cost, setup, each)
        allowed = budget.allowed(cost, later, each)
        number, spent = 1, each
        while spent + each <= (allowed.usual if number >= MIN_ROUNDS else allowed.most):
            number, spent = number + 1, spent + each
        energy = energy_factor * cost.energy
        now += spent + energy
        budget.finish(each, energy)
        rounds[key] = number
        out = left_out[len(rounds)] = {c.key for c in budget.left_out([*waiting.values()], out)}
    return Run(rounds, left_out, now + REPORT * slowness(now, costs[0])[0])


def cell(level: str, phase: str, size: int, setup: float, round: float) -> CellCost:
    is_single = phase == "decode" and size == 1
    return CellCost(f"{level} {phase} {size}", level, phase, is_single, setup, round)  # type: ignore[arg-type]


def mixtral(setup: float = 1.0, steps: float = 1.0) -> list[CellCost]:
    """The suite `mixtral` on a processor, its costs as on the two cores where it was written."""
    cells = []
    for level, reading, attention in (("moe", 1.0, 0.0), ("decoder", 9.0, 0.3)):
        for batch, seconds in ((1, 0.15), (4, 0.2), (16, 0.4), (64, 0.6), (256, 1.2)):
            cells.append(
                cell(level, "decode", batch, reading + 2, seconds + attention * batch / 256)
            )
        cells.append(cell(level, "prefill", 128, reading + 3, 0.7))
        cells.append(cell(level, "prefill", 1024, reading + 5, 4.0 + attention))
    # In the file, training comes last.
    cells += [cell("moe", "train", 512, 10, 8.0), cell("decoder", "train", 512, 18, 9.0)]
    return [replace(c, setup=setup * c.setup, round=steps * c.round) for c in cells]


def steady(setup: float, steps: float) -> Slowness:
    return lambda now, cost: (setup, steps)


def inference(found: Run) -> list[int]:
    return [number for key, number in found.rounds.items() if "train" not in key]


MACHINES = {
    "as predicted": (mixtral(), 600, steady(1, 1)),
    "twice as slow as predicted": (mixtral(), 600, steady(2, 2)),
    "faster than predicted": (mixtral(), 300, steady(0.5, 0.5)),
    "steps mispredicted both ways": (
        mixtral(),
        600,
        lambda now, cost: (1.0, 1.8 if cost.level == "moe" else 0.6),
    ),
    "twice as slow from half of the budget on": (
        mixtral(),
        600,
        lambda now, cost: (2.0, 2.0) if now > 300 else (1.0, 1.0),
    ),
    "set-up dominates": (mixtral(steps=0.1), 300, steady(1.6, 1.0)),
    "set-up was taken for nothing": (mixtral(setup=0.2, steps=0.1), 300, steady(8, 1)),
}


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("seed", range(3))
def test_a_run_ends_within_a_tenth_of_its_budget_with_all_rounds_of_inference(
    machine: str, seed: int
) -> None:
    costs, total, slowness = MACHINES[machine]
    found = run(costs, total, slowness, start=10.0 + 20 * seed)
    assert found.duration <= 1.1 * total
    assert min(inference(found)) >= MIN_ROUNDS
    measured = [c for c in costs if c.key in found.rounds]
    assert len(measured) >= 0.75 * len(costs)
    assert {c.phase for c in measured} == {"decode", "prefill", "train"}
    assert {c.key for c in costs if c.is_single} <= set(found.rounds)


def test_with_a_budget_that_suffices_nothing_is_left_out_and_training_gets_its_rounds() -> None:
    costs = mixtral()
    found = run(costs, 600, steady(1, 1), start=20.0)
    assert set(found.rounds) == {c.key for c in costs} and not any(found.left_out.values())
    assert min(found.rounds.values()) >= MIN_ROUNDS
    assert found.duration > 0.9 * 600


def test_what_is_left_out_is_known_before_the_first_cell_and_is_no_more_than_a_quarter() -> None:
    costs = mixtral(setup=1.1, steps=1.1)
    found = run(costs, 300, steady(1, 1), start=20.0)
    first = found.left_out[0]
    assert 0 < len(first) <= 4
    assert set(found.rounds) == {c.key for c in costs} - first
    assert min(inference(found)) >= MIN_ROUNDS


@given(setup=st.floats(0.2, 20), steps=st.floats(0.2, 20), total=st.floats(20, 2000))
def test_whatever_is_left_out_phases_and_single_sequences_stay(
    setup: float, steps: float, total: float
) -> None:
    costs = mixtral(setup, steps)
    budget = Budget(total, costs, MIN_ROUNDS, started=0.0, clock=lambda: 10.0)
    out = budget.left_out(costs)
    assert not any(cost.is_single for cost in out)
    phases = {c.phase for c in costs if c not in out}
    if len(out) > len(costs) / 4 or len(phases) < 3:  # then not even one round of each cell fits
        assert sum(budget.need(cost).least for cost in costs) > budget.left()


def test_a_budget_that_cannot_hold_one_round_of_each_cell_leaves_nothing_out_and_says_so() -> None:
    costs = mixtral()
    budget = Budget(5.0, costs, MIN_ROUNDS, started=0.0, clock=lambda: 1.0)
    assert budget.left_out(costs) == []
    (line,) = budget.notes(costs, (), ())
    assert line.endswith("the budget of 5.00 s is not held")


def test_where_one_round_of_each_does_not_fit_the_longest_cells_go() -> None:
    """Other programs leave a tenth of the processors: training alone would take the budget."""
    found = run(mixtral(8.0, 8.0), 600, steady(1, 1), start=60.0)
    assert found.duration < 660
    assert {"moe train 512", "decoder train 512"} <= found.left_out[0]
    assert {"moe decode 1", "decoder decode 1"} <= set(found.rounds)
    assert min(inference(found)) >= MIN_ROUNDS


def test_a_cell_gets_its_rounds_where_those_behind_it_will_not_fit_any_more() -> None:
    costs = [cell("moe", "decode", batch, 10.0, 1.0) for batch in (1, 4, 16)]
    budget = Budget(100.0, costs, MIN_ROUNDS, started=0.0, clock=lambda: 70.0)
    budget.set_up(costs[0], 60.0, 1.0)
    assert budget.allowed(costs[0], costs[1:], 1.0).usual >= MIN_ROUNDS


def test_training_gives_way_before_inference_is_left_out() -> None:
    costs = mixtral()
    least = sum(
        c.setup + 1.1 * c.round * (FEWEST_TRAINING_ROUNDS if c.phase == "train" else MIN_ROUNDS)
        for c in costs
    )
    found = run(costs, 1.05 * (least + REPORT), steady(1, 1))
    assert not any(found.left_out.values())
    assert min(inference(found)) >= MIN_ROUNDS
    assert FEWEST_TRAINING_ROUNDS <= found.rounds["moe train 512"] < MIN_ROUNDS


def test_a_cell_comes_back_where_the_others_took_less_than_predicted() -> None:
    costs = mixtral()
    found = run(costs, 280, steady(0.4, 0.4), start=10.0)
    assert found.left_out[0]
    assert set(found.rounds) == {c.key for c in costs}


def test_only_a_change_is_said() -> None:
    costs = mixtral(2.0, 2.0)
    budget = Budget(500, costs, MIN_ROUNDS, started=0.0, clock=lambda: 10.0)
    out = [cost.key for cost in costs if cost in budget.left_out(costs)]
    lines = budget.notes(costs, out, ())
    said = [line.removeprefix("left out: ").split(",")[0] for line in lines]
    assert said[: len(out)] == out and "--resume" in lines[len(out)]
    budget.set_up(costs[0], costs[0].setup, costs[0].round)
    assert budget.notes(costs, out, out) == []
    assert budget.notes(costs, (), out[:1]) == [f"there is time for {out[0]} after all"]


def test_overrun_is_less_than_what_a_run_may_be_late() -> None:
    assert OVERRUN < 0.1
