"""Attention against its slow definition: heads, contexts, windows and scaled frequencies."""

import math
from dataclasses import replace

import pytest
import reference
import torch
from torch import Tensor

from moebench.model.attention import causal_attention
from moebench.model.rotary import Rotary, rotary_frequencies, rotate
from moebench.spec.attention import RopeScaling
from moebench.spec.model import ModelSpec


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize(
    ("sequence", "total", "window"),
    [(1, 1, 0), (1, 5, 0), (3, 3, 0), (3, 5, 0), (5, 5, 0)]
    + [(1, 5, 3), (3, 5, 2), (5, 5, 1), (5, 5, 4), (3, 5, 9)],
)
def test_attention_is_the_naive_one_with_its_gradients(
    kv_heads: int, sequence: int, total: int, window: int
) -> None:
    def make(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    query = make(2, sequence, 6, 8)
    key, value = make(2, kv_heads, total, 8), make(2, kv_heads, total, 8)
    scale = 0.2 if window else 0.0

    def naive(b: int, h: int) -> Tensor:
        keys, values = key[b, h * kv_heads // 6], value[b, h * kv_heads // 6]
        return reference.causal_attention(query[b, :, h], keys, values, scale, window)

    expected = torch.stack([torch.stack([naive(b, h) for h in range(6)], dim=1) for b in range(2)])
    observed = causal_attention(query, key, value, scale or None, window)
    torch.testing.assert_close(observed, expected, rtol=1e-10, atol=1e-10)
    direction = torch.randn_like(expected)
    leaves = (query, key, value)
    torch.testing.assert_close(
        torch.autograd.grad((observed * direction).sum(), leaves),
        torch.autograd.grad((expected * direction).sum(), leaves),
        rtol=1e-9,
        atol=1e-9,
    )


def test_dimensions_beyond_the_rotary_ones_stay() -> None:
    x = torch.randn(2, 3, 4, 8)
    quarter = torch.zeros(3, 1, 4), torch.ones(3, 1, 4)  # a turn by 90 degrees
    turned = rotate(x, Rotary(*quarter))
    assert torch.equal(turned[..., 4:], x[..., 4:])
    assert torch.equal(turned[..., :4], torch.cat((-x[..., 2:4], x[..., :2]), dim=-1))


def scaled(tiny: ModelSpec, scaling: RopeScaling | None) -> tuple[list[float], float]:
    attention = replace(tiny.attention, head_dim=64, rope_scaling=scaling)
    frequencies, factor = rotary_frequencies(attention)
    return frequencies.tolist(), factor


def test_linear_scaling_stretches_every_frequency(tiny: ModelSpec) -> None:
    plain, _ = scaled(tiny, None)
    stretched, factor = scaled(tiny, RopeScaling("linear", factor=4))
    assert factor == 1
    assert stretched == pytest.approx([frequency / 4 for frequency in plain])


def test_llama3_scaling_keeps_short_waves_and_stretches_long_ones(tiny: ModelSpec) -> None:
    """Llama 3.1: in between, shares move with the turns that fit into the first context."""
    plain, _ = scaled(tiny, None)
    scaling = RopeScaling("llama3", 8, 8192, low_frequency_factor=1, high_frequency_factor=4)
    found, _ = scaled(tiny, scaling)
    between = 0
    for before, after in zip(plain, found, strict=True):
        turns = 8192 * before / (2 * math.pi)
        if turns > 4:
            assert after == pytest.approx(before)
        elif turns < 1:
            assert after == pytest.approx(before / 8)
        else:
            between += 1
            share = (turns - 1) / 3
            assert after == pytest.approx(share * before + (1 - share) * before / 8)
    assert between


def test_yarn_keeps_fast_pairs_stretches_slow_ones_and_sharpens(tiny: ModelSpec) -> None:
    """Peng et al., section 3: a ramp between 32 turns and 1 turn; factor 0.1 ln(s) + 1."""
    plain, _ = scaled(tiny, None)
    found, factor = scaled(tiny, RopeScaling("yarn", 40, 4096))
    assert factor == pytest.approx(0.1 * math.log(40) + 1)
    for before, after in zip(plain, found, strict=True):
        turns = 4096 * before / (2 * math.pi)
        if turns > 64:
            assert after == pytest.approx(before)
        if turns < 0.5:
            assert after == pytest.approx(before / 40)
        assert before / 40 <= after * (1 + 1e-6) <= before * (1 + 2e-6)
    deepseek = RopeScaling("yarn", 40, 4096, mscale=1.0, mscale_all_dim=1.0)
    assert scaled(tiny, deepseek)[1] == 1
    assert scaled(tiny, RopeScaling("yarn", 40, 4096, attention_factor=1.2))[1] == 1.2


def test_a_scaling_needs_the_context_it_starts_from() -> None:
    with pytest.raises(ValueError, match="original_context: found 0, expected 1 to"):
        RopeScaling("yarn", 40)
