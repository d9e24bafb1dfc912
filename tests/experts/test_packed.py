"""Packed execution: experts of few rows are grouped, with the same results."""

from dataclasses import replace

import pytest
import torch

from moebench.experts import packed
from moebench.experts.cpu import scratch
from moebench.experts.weights import ExpertWeights
from moebench.routers.routing import Routing
from moebench.spec.model import ModelSpec


@pytest.mark.parametrize("most", [0, 4, 9, 40], ids="at most {} rows together".format)
@pytest.mark.parametrize("num_tokens", [1, 2, 20])
def test_experts_give_the_same_together_and_one_by_one(
    tiny: ModelSpec, monkeypatch: pytest.MonkeyPatch, num_tokens: int, most: int
) -> None:
    # Between them many an expert has fewer rows than are computed, the last one included.
    model = replace(tiny, num_experts=8)
    weights = ExpertWeights(model, torch.float32)
    for parameter in weights.parameters():
        torch.nn.init.normal_(parameter)
    scores = torch.rand(num_tokens, 8) * torch.arange(1, 9).rsqrt()
    routing = Routing.from_slots(
        *scores.topk(3), num_experts=8, keep=torch.rand(scores.shape[0], 3) < 0.9
    )
    x = torch.randn(num_tokens, model.hidden_size)
    with torch.no_grad():
        together = packed.packed(x, routing, weights)
        monkeypatch.setattr(packed, "MOST_ELEMENTS", most * weights.gate_up.shape[1])
        assert torch.equal(packed.packed(x, routing, weights), together)


def test_experts_are_taken_together_up_to_the_rows_allowed() -> None:
    counts = [0, 2, 1, 0, 9, 3, 1, 1, 0]
    found = [[expert for expert, _ in group] for group in packed.groups(counts, 4)]
    assert found == [[1, 2], [4], [5, 6], [7]]


def test_scratch_memory_is_reused_and_can_be_freed(tiny: ModelSpec) -> None:
    weights = ExpertWeights(tiny, torch.float32)
    for parameter in weights.parameters():
        torch.nn.init.normal_(parameter)
    weights_of_slots, experts = torch.rand(5, tiny.num_experts).topk(2)
    routing = Routing.from_slots(weights_of_slots, experts, tiny.num_experts)
    x = torch.randn(5, tiny.hidden_size)
    with torch.no_grad():
        first = packed.packed(x, routing, weights)
        assert scratch._memory.bytes.numel() >= 10 * tiny.hidden_size * 4
        packed.free_scratch()
        assert scratch._memory.bytes is None
        assert torch.equal(packed.packed(x, routing, weights), first)
