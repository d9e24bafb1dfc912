"""Gates and decoder layers against transformers' own code, family by family."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from moebench.experts.backends import load_backend
from moebench.model.checkpoint.files import open_checkpoint
from moebench.model.checkpoint.layers import load_decoder
from moebench.model.checkpoint.places import READ_FAMILIES
from moebench.model.decoder import StepMode
from moebench.routers.auxiliary import auxiliary_loss
from moebench.routers.policy import policy
from moebench.routers.routing import build_routers
from moebench.routers.top_k.policy import TopK
from moebench.spec.model import ModelSpec

pytest.importorskip("transformers", reason="families are compared with transformers' own code")

from families import FAMILIES, model_type, why_not_executed  # noqa: E402
from family_differences import (  # noqa: E402
    gate_difference,
    layers_difference,
    loaded_routers,
    saved_family,
)

QUICK = ("mixtral", "deepseek_v2", "deepseek_v3", "ernie4_5_moe")
"""A softmax, both kinds of groups, and a bias on probabilities."""


def families(*quick: str) -> list[Any]:
    return [pytest.param(n, marks=() if n in quick else pytest.mark.slow) for n in FAMILIES]


@pytest.mark.parametrize("name", families(*QUICK))
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


@pytest.mark.parametrize("name", families("mixtral", "granitemoe"))
def test_two_decoder_layers_are_the_familys_own(name: str, tmp_path: Path) -> None:
    """From a checkpoint that transformers saved; norms have an epsilon of 1e-4, which shows here.

    Whole, and in parts against the cache.
    """
    if why_not := why_not_executed(name):
        pytest.skip(f"not executed: {why_not}")
    found = layers_difference(name, tmp_path)
    assert found.prefill < 2e-6
    assert found.cached < 2e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deepseek_v2", "deepseek_v3"])
def test_an_moe_layer_from_a_checkpoint_is_the_familys_own(name: str, tmp_path: Path) -> None:
    """Where attention is not executed: norm, router, experts and shared experts."""
    theirs, _ = saved_family(name, tmp_path)
    checkpoint = open_checkpoint(str(tmp_path))
    decoder = load_decoder(checkpoint, (1,), torch.float32)
    x = torch.randn(2, 33, 64)
    with torch.no_grad():
        block = theirs.layers[1]
        expected = x + block.mlp(block.post_attention_layernorm(x))
        routers = loaded_routers(checkpoint, (1,))
        found = decoder(x, routers, load_backend("grouped"), StepMode("moe"))[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_families_whose_layers_run_are_read_from_checkpoints() -> None:
    """At level "decoder"; and DeepSeek's, whose attention does not run, at level "moe"."""
    executed = {model_type(name) for name in FAMILIES if not why_not_executed(name)}
    assert {*READ_FAMILIES} == executed | {"deepseek_v2", "deepseek_v3"}


def test_the_pooled_balance_loss_is_transformers_own(tiny: ModelSpec) -> None:
    """Which sums the shares over the k slots: k times ours."""
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    model = replace(tiny, num_experts=8, top_k=3)
    logits = [2 * torch.randn(50, 8) for _ in range(4)]
    expected = load_balancing_loss_func(tuple(logits), 8, 3)
    routers = build_routers(policy("top-k", {"aux_reduction": "pooled"}), model, 4, torch.float32)
    parts = [r.train().route(x).aux_loss for r, x in zip(routers, logits, strict=True)]
    torch.testing.assert_close(3 * auxiliary_loss(parts) / TopK.balance_coefficient, expected)
