"""Auxiliary losses over a stack: each reduction by its definition, and each router's own."""

from dataclasses import replace

import pytest
import torch

from moebench.routers.auxiliary import AuxiliaryLoss, auxiliary_loss
from moebench.routers.policy import policy
from moebench.routers.routing import build_routers
from moebench.spec.gate import Gate
from moebench.spec.model import ModelSpec

BALANCED = {"sum": 0.16, "mean": 0.01, "pooled": 0.01}
"""At perfect balance of OLMoE's 16 layers with a coefficient of 0.01."""


def layers(model: ModelSpec, name: str, logits: list[torch.Tensor], **options: object):  # type: ignore[no-untyped-def]
    """Parts of the loss, one for each layer's logits."""
    routers = build_routers(policy(name, options), model, len(logits), torch.float32)
    return [
        router.train().route(scores).aux_loss
        for router, scores in zip(routers, logits, strict=True)
    ]


@pytest.mark.parametrize("reduction", sorted(BALANCED))
def test_at_balance_the_loss_is_the_coefficient_of_its_reduction(
    reduction: str, tiny: ModelSpec
) -> None:
    """Tokens that lean slightly to each pair of experts in turn; P is even over them."""
    leaning = 1e-3 * torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]] * 8)
    parts = layers(tiny, "top-k", [leaning] * 16, aux_reduction=reduction)
    assert float(auxiliary_loss(parts)) == pytest.approx(BALANCED[reduction], rel=1e-3)


def test_pooling_hides_imbalances_that_cancel(tiny: ModelSpec) -> None:
    """Two layers collapsed onto opposite halves: balanced together, and 2 of 1 each by itself."""
    half = 50 * torch.tensor([[1.0, 1.0, 0.0, 0.0]]).expand(8, 4)
    for reduction, expected in (("pooled", 0.01), ("mean", 0.02), ("sum", 0.04)):
        parts = layers(tiny, "top-k", [half, half.flip(1)], aux_reduction=reduction)
        assert float(auxiliary_loss(parts)) == pytest.approx(expected, rel=1e-4)


def test_each_reduction_is_its_definition() -> None:
    factors, probabilities = torch.rand(3, 5), torch.rand(3, 5)
    own = [float(f @ p) for f, p in zip(factors, probabilities, strict=True)]
    pooled = float((factors.sum(0) / 3) @ (probabilities.sum(0) / 3))
    for reduction, expected in (("sum", sum(own)), ("mean", sum(own) / 3), ("pooled", pooled)):
        parts = [
            AuxiliaryLoss(f, p, reduction)  # type: ignore[arg-type]
            for f, p in zip(factors, probabilities, strict=True)
        ]
        assert float(auxiliary_loss(parts)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "reduction"),
    [("top-k", "mean"), ("rmoe", "pooled"), ("adamoe", "pooled"), ("ada-k", "mean")],
)
def test_the_default_is_that_of_the_released_code(
    name: str, reduction: str, tiny: ModelSpec
) -> None:
    widths = {"ada-k": 8, "adamoe": 12}
    parts = layers(tiny, name, [torch.randn(6, widths.get(name, 4))])
    assert parts[0].reduction == reduction


def test_rmoe_sums_shares_over_the_slots_as_its_code_does(tiny: ModelSpec) -> None:
    """4.029 at 16 experts, top 4, in the released code; here k times the loss of top-k."""
    model = replace(tiny, num_experts=16, top_k=4, gate=Gate("softmax", True))
    logits = [torch.randn(64, 16) for _ in range(4)]
    rmoe = auxiliary_loss(layers(model, "rmoe", logits))
    top_k = auxiliary_loss(layers(model, "top-k", logits, aux_reduction="pooled"))
    torch.testing.assert_close(rmoe, 4 * top_k)
    assert 0.04 < rmoe < 0.05


def test_an_unknown_reduction_is_refused() -> None:
    with pytest.raises(ValueError, match="aux_reduction"):
        policy("top-k", {"aux_reduction": "per-layer"})
