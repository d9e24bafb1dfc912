"""Sharing a budget: cheap cells first, nothing lost, nothing overspent."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moebench.suite.loop import Need, allowance

needs = st.lists(
    st.builds(lambda least, more: Need(least, least + more), st.floats(0, 9), st.floats(0.1, 99)),
    min_size=1,
    max_size=12,
)


def spend(needs: list[Need], budget: float) -> list[float]:
    """What every cell gets if each spends its allowance to the last second."""
    spent: list[float] = []
    for index in range(len(needs)):
        spent.append(allowance(needs[index:], budget - sum(spent)))
    return spent


@given(needs=needs, budget=st.floats(0.1, 1000))
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
    cheap, dear = Need(1, 10), Need(20, 100)
    assert spend([dear, cheap, dear, cheap], 120) == pytest.approx([80, 10, 20, 10])


def test_what_a_cell_leaves_goes_to_the_next() -> None:
    assert allowance([Need(5, 100)], 60.0) == pytest.approx(60)
    assert allowance([Need(0, 10), Need(0, 10)], 40.0) == pytest.approx(20)


def test_an_exhausted_budget_allows_a_single_round() -> None:
    assert allowance([Need(1, 5), Need(2, 9)], -3.0) == 1
