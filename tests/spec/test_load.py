"""How many experts a batch touches, and how k is distributed."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moebench.spec.load import (
    ExpertLoad,
    fixed_k,
    geometric_k,
    inclusion_probabilities,
    null_expert_k,
)


def mean(distribution: tuple[float, ...]) -> float:
    return sum(k * p for k, p in enumerate(distribution))


def test_expected_distinct_experts_are_those_of_enumerated_batches() -> None:
    """Every way in which 3 tokens can each choose 2 of 4 experts, all equally likely."""
    choices = list(itertools.combinations(range(4), 2))
    touched = [len(set(sum(batch, ()))) for batch in itertools.product(choices, repeat=3)]
    load = ExpertLoad.expected(3, 4, fixed_k(2))
    assert load.distinct_experts == pytest.approx(np.mean(touched))
    assert load.tokens_per_expert == pytest.approx((1.5,) * 4)


@pytest.mark.parametrize(("tokens", "ratio"), [(1, 0.700), (4, 0.785), (16, 0.964), (64, 1.0)])
def test_adaptive_routing_saves_experts_only_in_small_batches(tokens: int, ratio: float) -> None:
    """N (1 - (1 - k / N)^m), EPS-MoE (2410.12247) section 3.2, for Mixtral at k 2 -> 1.40."""
    adaptive = ExpertLoad.expected(tokens, 8, geometric_k(1.40, 8)).distinct_experts
    fixed = ExpertLoad.expected(tokens, 8, fixed_k(2)).distinct_experts
    assert adaptive / fixed == pytest.approx(ratio, abs=5e-4)


def test_ada_k_lets_about_a_tenth_of_the_tokens_exceed_the_default() -> None:
    """Yue et al., section 4.4, report about 10 % for the default k."""
    assert 0.07 < sum(geometric_k(1.40, 8)[3:]) < 0.13


def test_null_slots_are_those_of_enumerated_choices_when_experts_are_alike() -> None:
    """3 of 4 true and 2 null columns, all equally likely: mean 2, hypergeometric."""
    counts = [sum(c < 4 for c in chosen) for chosen in itertools.combinations(range(6), 3)]
    share = np.bincount(counts, minlength=4) / len(counts)
    assert null_expert_k(2.0, 3, 4, 2) == pytest.approx(tuple(share), abs=1e-9)


@given(st.floats(1.0, 8.0), st.integers(8, 64))
def test_a_geometric_k_has_its_mean_and_never_zero(target: float, largest: int) -> None:
    distribution = geometric_k(target, largest)
    assert mean(distribution) == pytest.approx(target, abs=1e-6)
    assert sum(distribution) == pytest.approx(1)
    assert distribution[0] == 0
    assert len(distribution) == largest + 1


@given(st.integers(1, 64).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))))
def test_inclusion_probabilities_are_probabilities_that_sum_to_k(sizes: tuple[int, int]) -> None:
    num_experts, k = sizes
    popularity = np.arange(1, num_experts + 1, dtype=np.float64) ** -1.2
    inclusion = inclusion_probabilities(popularity, k)
    assert inclusion.sum() == pytest.approx(k)
    assert (inclusion <= 1 + 1e-12).all()
    assert (np.diff(inclusion) <= 1e-12).all(), "the more popular expert is never rarer"


@given(st.integers(1, 200), st.floats(0.0, 2.0))
def test_skew_never_touches_more_experts(tokens: int, skew: float) -> None:
    even = ExpertLoad.expected(tokens, 8, fixed_k(2)).distinct_experts
    assert ExpertLoad.expected(tokens, 8, fixed_k(2), skew).distinct_experts <= even + 1e-9


def test_an_empty_step_has_no_load() -> None:
    load = ExpertLoad.expected(0, 4, fixed_k(2))
    assert (load.mean_k, load.distinct_experts, load.num_assignments) == (0, 0, 0)


@pytest.mark.parametrize("impossible", [0.5, 9.0, math.inf])
def test_a_mean_outside_the_range_is_refused(impossible: float) -> None:
    with pytest.raises(ValueError, match="expected 1"):
        geometric_k(impossible, 8)
