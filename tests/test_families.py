"""Gates and decoder layers against transformers' own code, family by family."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from moebench.routers.auxiliary import auxiliary_loss
from moebench.routers.policy import policy
from moebench.routers.routing import build_routers
from moebench.routers.top_k.policy import TopK
from moebench.spec.model import ModelSpec

pytest.importorskip("transformers", reason="families are compared with transformers' own code")

from families import FAMILIES, why_not_executed  # noqa: E402
from family_differences import gate_difference, layers_difference  # noqa: E402

QUICK = ("mixtral", "deepseek_v2", "deepseek_v3", "ernie4_5_moe")
"""A softmax, both kinds of groups, and a bias on probabilities."""


def gates() -> list[Any]:
    return [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in FAMILIES]


@pytest.mark.parametrize("name", gates())
def test_a_gate_is_the_familys_own(name: str) -> None:
    """Logits to the bit; weights and gradients to fp32 rounding; every token's experts.

    In bf16 too, but where transformers compares scores in bf16: of 1,024 tokens, at most 4 %.
    """
    found = gate_difference(name)
    assert found.logits == 0
    assert found.weights < 1e-6
    assert found.gradients < 1e-6
    assert found.tokens == 0
    assert found.bf16_tokens <= (40 if FAMILIES[name].bf16 else 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_two_decoder_layers_are_the_familys_own(name: str) -> None:
    """Whole and in parts against the cache; norms have an epsilon of 1e-4, which shows here."""
    if why_not := why_not_executed(name):
        pytest.skip(f"not executed: {why_not}")
    found = layers_difference(name)
    assert found.prefill < 2e-6
    assert found.cached < 2e-6


def test_the_pooled_balance_loss_is_transformers_own(tiny: ModelSpec) -> None:
    """Which sums the shares over the k slots: k times ours."""
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    model = replace(tiny, num_experts=8, top_k=3)
    logits = [2 * torch.randn(50, 8) for _ in range(4)]
    expected = load_balancing_loss_func(tuple(logits), 8, 3)
    routers = build_routers(policy("top-k", {"aux_reduction": "pooled"}), model, 4, torch.float32)
    parts = [r.train().route(x).aux_loss for r, x in zip(routers, logits, strict=True)]
    torch.testing.assert_close(3 * auxiliary_loss(parts) / TopK.balance_coefficient, expected)
