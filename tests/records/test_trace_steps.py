"""Steps drawn from traces: laws of the draws, and known counts."""

import numpy as np
import pytest
from traces import a_trace, independent_trace, small_model

from moebench.records.trace import Trace
from moebench.records.trace_steps import (
    Domains,
    StepShape,
    drawn_steps,
    independent_experts,
    most_sequences,
    step_counts,
)


def rng() -> np.random.Generator:
    return np.random.default_rng(5)


@pytest.fixture(scope="module")
def random_trace() -> Trace:
    """Forty sequences of two texts, of uneven lengths."""
    lengths = [3 + i % 11 for i in range(40)]
    return independent_trace(lengths, small_model(16, 3), text_of=[0] * 25 + [1] * 15)


@pytest.mark.parametrize("domains", ["mixed", "one"])
@pytest.mark.parametrize("sequences", [1, 4, 15])
def test_a_decode_step_never_has_two_tokens_of_a_sequence(
    random_trace: Trace, sequences: int, domains: Domains
) -> None:
    steps = drawn_steps(random_trace, StepShape(sequences), domains, rng())
    assert steps.shape == (StepShape(sequences).num_draws, sequences)
    of = np.sort(random_trace.sequence[steps], axis=1)
    assert (np.diff(of, axis=1) > 0).all()
    texts = random_trace.text_of[random_trace.sequence[steps]]
    assert (np.ptp(texts, axis=1) == 0).all() == (domains == "one" or sequences == 1)
    assert {*texts.ravel().tolist()} == {0, 1}


def test_every_token_of_a_sequence_is_drawn(random_trace: Trace) -> None:
    steps = drawn_steps(random_trace, StepShape(4), "mixed", rng())
    assert {*steps.ravel().tolist()} == {*range(random_trace.num_tokens)}


@pytest.mark.parametrize("domains", ["mixed", "one"])
def test_a_prefill_step_has_runs_of_consecutive_tokens_of_one_text(
    random_trace: Trace, domains: Domains
) -> None:
    steps = drawn_steps(random_trace, StepShape(3, 20), domains, rng())
    assert all(len({*step}) == 60 for step in steps.tolist())
    runs = steps.reshape(-1, 3, 20)
    assert (np.diff(runs, axis=2) == 1).all()
    texts = random_trace.text_of[random_trace.sequence[runs]]
    assert (np.ptp(texts, axis=2) == 0).all()
    if domains == "one":
        assert (np.ptp(texts.reshape(len(steps), -1), axis=1) == 0).all()


def test_a_step_larger_than_the_trace_is_refused(random_trace: Trace) -> None:
    assert most_sequences(random_trace, 1, "mixed") == 40
    assert most_sequences(random_trace, 1, "one") == 15
    with pytest.raises(ValueError, match="found 16, expected at most 15"):
        drawn_steps(random_trace, StepShape(16), "one", rng())


def test_known_routing_has_known_counts() -> None:
    # Every token of sequence s runs expert s, and expert 3 beside it.
    experts = [[[s, 3] for s in (0, 0, 1, 1, 2, 2)]]
    trace = a_trace(experts, [2, 2, 2], small_model(4, 2, 1))
    for sequences, distinct in ((1, 2.0), (2, 3.0), (3, 4.0)):
        steps = drawn_steps(trace, StepShape(sequences), "mixed", rng())
        found = step_counts(trace, steps, rng())
        assert found.distinct == distinct
        assert (found.counts[..., 3] == sequences).all()
        assert (found.counts.sum(axis=2) == 2 * sequences).all()
    # Three tokens of one sequence would touch two experts; the formula knows marginals alone.
    assert found.independent == pytest.approx(1 + 3 * (1 - (2 / 3) ** 3))


@pytest.mark.parametrize("sequences", [1, 2, 8, 32])
def test_independent_tokens_touch_what_the_formula_says(sequences: int) -> None:
    trace = independent_trace([50] * 64, small_model(32, 4, 3))
    steps = drawn_steps(trace, StepShape(sequences), "mixed", rng())
    found = step_counts(trace, steps, rng())
    expected = independent_experts(trace.marginals, sequences)
    assert abs(found.distinct - expected) < 4 * found.distinct_error + 0.02
    assert abs(found.independent - expected) < 0.15


def test_another_distribution_of_k_keeps_the_first_experts() -> None:
    trace = independent_trace([20] * 30, small_model(16, 4))
    steps = drawn_steps(trace, StepShape(1), "mixed", rng())
    ones = step_counts(trace, steps, rng(), (0.0, 1.0)).counts
    for layer in range(2):
        first = trace.experts[layer][steps[:, 0], 0]
        assert (ones[layer].argmax(axis=1) == first).all()
    assert (ones.sum(axis=2) == 1).all()
    same = step_counts(trace, steps, rng(), (0.0, 0.0, 0.0, 0.0, 1.0)).counts
    assert (same == step_counts(trace, steps, rng()).counts).all()


def test_tokens_that_ran_fewer_experts_get_further_ones() -> None:
    trace = independent_trace([20] * 30, small_model(16, 4))
    steps = drawn_steps(trace, StepShape(8), "mixed", rng())
    six = step_counts(trace, steps, rng(), (0.0,) * 6 + (1.0,))
    assert (six.counts.sum(axis=2) == 48).all()
    assert (six.counts <= 8).all()
    own = step_counts(trace, steps, rng())
    assert (six.counts >= own.counts).all()
    mixed = step_counts(trace, steps, rng(), (0.25, 0.25, 0.0, 0.0, 0.0, 0.0, 0.5))
    assert mixed.counts.sum(axis=2).mean() / 8 == pytest.approx(3.25, rel=0.02)
