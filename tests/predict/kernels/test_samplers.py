"""The samplers against a slow reading of their definition, and against what they must conserve."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import betainc
from scipy.stats import binom

from moebench.predict.kernels.loads import BLOCK_ROWS, binomial_survival, expected_loads
from moebench.predict.kernels.samplers import (
    NUM_DRAWS,
    Routed,
    balanced_counts,
    power_law_counts,
    sampled_loads,
)

layers = st.sampled_from([(8, 2), (16, 1), (128, 8), (160, 8), (512, 22)])


@given(layers, st.integers(1, 700))
def test_balanced_counts_follow_the_definition(layer: tuple[int, int], num_tokens: int) -> None:
    num_experts, top_k = layer
    stride = -(-num_experts // top_k)
    expected = [0] * num_experts
    for token in range(num_tokens):
        for slot in range(top_k):
            if num_tokens >= stride:
                expert = (token + slot * stride) % num_experts
            else:
                expert = int(token * stride / num_tokens + slot * stride) % num_experts
            expected[expert] += 1
    assert balanced_counts(Routed(num_tokens, top_k, num_experts)).tolist() == expected


def test_bfloat16_ids_merge_experts_above_256() -> None:
    exact = balanced_counts(Routed(20, 22, 512))
    rounded = balanced_counts(Routed(20, 22, 512), in_bfloat16=True)
    assert (rounded > 0).sum() < (exact > 0).sum()
    assert rounded[257:511:2].sum() == 0


@given(layers, st.integers(1, 3000), st.sampled_from([1.0, 1.01, 1.2]), st.booleans())
def test_power_law_conserves_copies_and_gives_no_token_twice(
    layer: tuple[int, int], num_tokens: int, exponent: float, to_one_rank: bool
) -> None:
    num_experts, top_k = layer
    for ranks in (1, 4):
        call = Routed(num_tokens, top_k, num_experts, ranks, f"power_law_{exponent}")
        counts = power_law_counts(call, to_one_rank)
        assert counts.shape == (NUM_DRAWS, num_experts)
        assert counts.min() >= 0
        if not to_one_rank:
            assert (counts.sum(axis=1) == num_tokens * top_k).all()
            assert counts.max() <= num_tokens
        shares = counts.reshape(NUM_DRAWS, ranks, -1).sum(axis=2)
        assert (shares[:, 0] == shares.max(axis=1)).all()


def test_left_over_copies_fill_the_smallest_experts_first() -> None:
    # One token of eight: every weight rounds to zero, so eight experts get one copy each.
    counts = power_law_counts(Routed(1, 8, 256, 1, "power_law_1.2"))
    assert (np.sort(counts, axis=1)[:, -8:] == 1).all()


def test_loads_count_padded_tiles_of_every_block() -> None:
    loads = sampled_loads([Routed(640, 8, 128)], "current")
    assert loads.copies[0] == 5120
    assert loads.distinct[0] == 128
    expected = [128 * -(-40 // block) for block in BLOCK_ROWS]
    assert loads.tiles[0].tolist() == expected


def test_unknown_distribution_is_named() -> None:
    with pytest.raises(ValueError, match="found 'zipf'"):
        sampled_loads([Routed(1, 1, 8, 1, "zipf")], "current")


@given(st.integers(1, 400), st.integers(1, 64))
def test_expected_tiles_are_those_of_independent_tokens(num_tokens: int, experts: int) -> None:
    """Summed over all counts that an expert may have."""
    marginal = np.linspace(0.02, 0.5, experts)
    loads = expected_loads([marginal * num_tokens], [num_tokens])
    counts = np.arange(num_tokens + 1)
    chances = binom.pmf(counts[:, None], num_tokens, marginal)
    tiles = [(-(-counts // block) @ chances).sum() for block in BLOCK_ROWS]
    assert loads.tiles[0] == pytest.approx(tiles, abs=1e-6)
    assert loads.distinct[0] == pytest.approx((1 - chances[0]).sum(), abs=1e-9)


@pytest.mark.parametrize("tokens", [1, 2, 7, 100, 4096, 65536, 2**30])
def test_binomial_survival_is_the_incomplete_beta_function(tokens: int) -> None:
    marginal = np.array([1e-12, 1e-6, 1e-3, 0.1, 0.5, 0.9, 1 - 1e-9])
    marginal = marginal[tokens * marginal * (1 - marginal) < 256**2]
    deviation = np.sqrt(tokens * marginal * (1 - marginal))
    above = tokens * marginal[:, None] + deviation[:, None] * np.linspace(-8, 8, 15)
    above = np.clip(np.round(above), 0, tokens - 1)
    chance = binomial_survival(np.full(len(marginal), tokens), marginal, above)
    expected = betainc(above + 1, tokens - above, marginal[:, None])
    np.testing.assert_allclose(chance, expected, rtol=1e-12, atol=1e-13)


def test_an_expert_that_every_token_or_no_token_chooses_has_certain_tiles() -> None:
    loads = expected_loads([np.array([100.0, 0.0])], [100])
    assert loads.tiles[0].tolist() == [-(-100 // block) for block in BLOCK_ROWS]
