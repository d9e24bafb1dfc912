"""Experts with biases and gpt-oss's clamped activation: the definition, gradients, refusals."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from moebench.experts.backends import execution
from moebench.experts.catalogue import EXPERT_BACKENDS
from moebench.experts.weights import Clamp, ExpertWeights
from moebench.routers.routing import Routing
from moebench.spec.model import ModelSpec

TAKES = {name for name, row in EXPERT_BACKENDS.items() if row.takes_biases}
IN_FLOAT64 = sorted(name for name in TAKES if "float64" in EXPERT_BACKENDS[name].dtypes)


@pytest.fixture(params=[False, True], ids=["gate first", "interleaved"])
def weights(request: pytest.FixtureRequest, tiny: ModelSpec) -> ExpertWeights:
    """Experts of 4 whose gates and ups reach beyond a limit of 1."""
    model = replace(tiny, has_expert_bias=True, activation="clamped-swiglu")
    built = ExpertWeights(model, torch.float64)
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    built.clamp = Clamp(alpha=1.3, limit=1.0, is_interleaved=request.param)
    return built


@pytest.fixture
def routing() -> Routing:
    """Seven tokens on experts 0, 2 and 3, one of them on none."""
    experts = torch.tensor([[0, 2], [2, 3], [3, 0], [0, 2], [3, 2], [2, 0], [0, 3]])
    keep = torch.tensor([[1, 1], [1, 0], [0, 0], [1, 1], [1, 1], [0, 1], [1, 1]]) > 0
    slot_weights = torch.rand(7, 2, dtype=torch.float64)
    return Routing.from_slots(slot_weights, experts, 4, keep)


def defined(x: Tensor, routing: Routing, weights: ExpertWeights) -> Tensor:
    """The sum over assignments, one column of gate and up after the other."""
    assert weights.clamp is not None
    assert weights.gate_up_bias is not None and weights.down_bias is not None
    alpha, limit, is_interleaved = weights.clamp
    inner = weights.down.shape[2]
    rows = [torch.zeros(x.shape[1], dtype=x.dtype) for _ in x]
    for token, expert, weight in zip(
        routing.token_indices.tolist(),
        routing.expert_indices.tolist(),
        routing.weights,
        strict=True,
    ):
        hidden = weights.gate_up[expert] @ x[token] + weights.gate_up_bias[expert]
        activated = []
        for i in range(inner):
            gate, up = (2 * i, 2 * i + 1) if is_interleaved else (i, inner + i)
            g, u = hidden[gate].clamp(max=limit), hidden[up].clamp(-limit, limit)
            activated.append((u + 1) * g / (1 + torch.exp(-alpha * g)))
        output = weights.down[expert] @ torch.stack(activated) + weights.down_bias[expert]
        rows[token] = rows[token] + weight * output
    return torch.stack(rows)


@pytest.mark.parametrize("name", IN_FLOAT64)
def test_outputs_and_gradients_are_the_definition(
    name: str, weights: ExpertWeights, routing: Routing
) -> None:
    """In a frozen stack only the trained tensor gets a gradient, and it is the same one."""
    x = torch.randn(7, 32, dtype=torch.float64)
    direction = torch.randn_like(x)
    leaf = x.clone().requires_grad_()
    inputs = [leaf, *weights.parameters()]
    expected = defined(leaf, routing, weights)
    gradients = torch.autograd.grad((expected * direction).sum(), inputs)
    assert (weights.gate_up[0] @ x[0] > 1).any(), "a gate beyond its limit is among the cases"
    with torch.no_grad():
        torch.testing.assert_close(execution(name)(x, routing, weights), expected)
    found = execution(name)(leaf, routing, weights)
    torch.testing.assert_close(found, expected)
    ours = torch.autograd.grad((found * direction).sum(), inputs)
    for one, other in zip(ours, gradients, strict=True):
        torch.testing.assert_close(one, other)
    weights.requires_grad_(False).down_bias.requires_grad_()
    again = (execution(name)(x, routing, weights) * direction).sum()
    torch.testing.assert_close(torch.autograd.grad(again, weights.down_bias)[0], gradients[-1])


@pytest.mark.parametrize("name", sorted({*EXPERT_BACKENDS} - TAKES))
def test_a_backend_that_would_leave_them_out_refuses(
    name: str, weights: ExpertWeights, routing: Routing
) -> None:
    with pytest.raises(ValueError, match=f"'{name}'.*only these take: loop, grouped"):
        execution(name)(torch.zeros(7, 32), routing, weights)


def test_triton_refuses_gates_and_ups_in_turns(tiny: ModelSpec, routing: Routing) -> None:
    weights = ExpertWeights(replace(tiny, activation="clamped-swiglu"), torch.float32)
    weights.clamp = Clamp(is_interleaved=True)
    with pytest.raises(ValueError, match="found gate and up in turns, expected gate above up"):
        execution("triton")(torch.zeros(7, 32), routing, weights)
