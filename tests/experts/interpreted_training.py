"""The Triton kernels of training in Triton's interpreter: every case, as one JSON object.

A program of its own, since TRITON_INTERPRET must be set before the kernels are imported.
"""

import json
import sys
from dataclasses import dataclass, replace

import torch
from experts.interpreter import round_to_nearest
from torch import Tensor

from moebench.experts.backends import execution
from moebench.experts.weights import Experts, ExpertWeights
from moebench.model.flops import torch_counter
from moebench.routers.routing import Choice, Routing
from moebench.spec.attention import Attention
from moebench.spec.gate import Gate
from moebench.spec.model import ModelSpec

RAGGED = [[1, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 0], [0, 0, 1]]


@dataclass(frozen=True)
class Case:
    """A layer's sizes and type, and its routing."""

    keep: tuple[tuple[int, ...], ...]
    num_experts: int = 5
    hidden: int = 72
    intermediate: int = 40
    is_gated: bool = True
    dtype: torch.dtype = torch.float32
    is_bounded: bool = False
    is_one_expert: bool = False
    """Whether all tokens visit the last expert."""

    def routing(self) -> Routing:
        keep = torch.tensor(self.keep) > 0
        if self.is_one_expert:
            experts = torch.full(keep.shape, self.num_experts - 1)
        else:
            width = keep.shape[1]
            experts = torch.stack([torch.randperm(self.num_experts)[:width] for _ in keep])
        choice = Choice(torch.rand(keep.shape).to(self.dtype), experts, self.num_experts, keep)
        if not self.is_bounded:
            return Routing.from_slots(*choice)
        routing = Routing.bounded(choice)
        count = int(routing.tokens_per_expert.sum())
        tokens, weights = routing.token_indices.clone(), routing.weights.clone()
        tokens[count:], weights[count:] = 10**9, float("nan")
        return replace(routing, token_indices=tokens, weights=weights)

    def model(self) -> ModelSpec:
        return ModelSpec(
            name="tiny",
            source="made for tests",
            num_layers=1,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_experts=self.num_experts,
            top_k=1,
            vocab_size=64,
            attention=Attention(kind="gqa", num_heads=4, num_kv_heads=2, head_dim=8),
            gate=Gate(score="softmax", renormalise=True),
            is_gated=self.is_gated,
        )


ragged = tuple(map(tuple, RAGGED))
QUICK = {
    "ragged, odd sizes": Case(ragged, hidden=67, intermediate=35),
    "bound above the assignments, bf16": Case(ragged, dtype=torch.bfloat16, is_bounded=True),
    "two matrices, all on one expert": Case(((1,),) * 40, is_gated=False, is_one_expert=True),
}
CASES = QUICK | {
    "one expert": Case(((1,),) * 5, num_experts=1),
    "257 experts": Case(((1, 1),) * 9, num_experts=257, hidden=17, intermediate=9),
    "one token": Case(((1, 1, 1),)),
    "several row tiles of one expert": Case(((1,),) * 150, is_one_expert=True),
    "rows above a tensor core's tile, bf16": Case(
        ((1, 1),) * 170, num_experts=2, hidden=136, intermediate=72, dtype=torch.bfloat16
    ),
    "bound above the assignments": Case(ragged, is_bounded=True),
    "bound without assignments": Case(((0, 0),) * 4, is_bounded=True),
    "two matrices, bf16": Case(ragged, is_gated=False, dtype=torch.bfloat16),
    "fp16": Case(ragged, dtype=torch.float16),
    "hidden and intermediate of 1": Case(ragged, hidden=1, intermediate=1),
}
PARTS = ("y", "x", "routing weights", "gate_up", "down")


def outcome(
    experts: Experts, x: Tensor, routing: Routing, weights: ExpertWeights, direction: Tensor
) -> list[Tensor]:
    """The layer's output and its gradients along a direction."""
    leaf, factors = x.clone().requires_grad_(), routing.weights.clone().requires_grad_()
    y = experts(leaf, replace(routing, weights=factors), weights)
    inputs = leaf, factors, weights.gate_up, weights.down
    if not y.requires_grad:
        return [y, *map(torch.zeros_like, inputs)]
    return [y.detach(), *torch.autograd.grad(y, inputs, direction)]


def assigned(routing: Routing, dtype: torch.dtype) -> Routing:
    """The same routing without the entries behind the last assignment, weights in a type."""
    count = int(routing.tokens_per_expert.sum())
    flat = {
        name: getattr(routing, name)[:count]
        for name in ("token_indices", "expert_indices", "weights", "positions")
    }
    flat["weights"] = flat["weights"].to(dtype)
    return replace(routing, **flat)


def errors(case: Case) -> dict[str, tuple[float, float]]:
    """Relative errors of each part against float64: of the kernels, and of `grouped`."""
    torch.manual_seed(0)
    routing, weights = case.routing(), ExpertWeights(case.model(), case.dtype)
    for parameter in weights.parameters():
        torch.nn.init.normal_(parameter, std=parameter.shape[2] ** -0.5)
    # Rows of an odd stride, as a slice of a larger tensor has them.
    x = torch.randn(len(case.keep), 2 * case.hidden).to(case.dtype)[:, : case.hidden]
    direction = torch.randn(x.shape).to(case.dtype)
    exact_weights = ExpertWeights(case.model(), torch.float64)
    exact_weights.load_state_dict(weights.state_dict())
    grouped = execution("grouped")
    given = x.double(), assigned(routing, torch.float64), exact_weights, direction.double()
    exact = outcome(grouped, *given)
    theirs = outcome(grouped, x, assigned(routing, case.dtype), weights, direction)
    ours = outcome(execution("triton"), x, routing, weights, direction)
    count = int(routing.tokens_per_expert.sum())
    behind, ours[2] = ours[2][count:], ours[2][:count]
    assert not behind.any(), "a gradient behind the last assignment"

    def error(one: Tensor, other: Tensor) -> float:
        return float((one.double() - other).norm()) / (float(other.norm()) or 1.0)

    return {
        part: (error(one, true), error(other, true))
        for part, one, other, true in zip(PARTS, ours, theirs, exact, strict=True)
    }


def frozen() -> dict[str, bool]:
    """Whether each input alone gets the gradient that it has beside the others."""
    torch.manual_seed(0)
    case = CASES["one token"]
    routing, weights = case.routing(), ExpertWeights(case.model(), case.dtype)
    for parameter in weights.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(1, case.hidden)
    direction = torch.randn_like(x)
    whole = outcome(execution("triton"), x, routing, weights, direction)[1:]
    alike = {}
    for place, part in enumerate(PARTS[1:]):
        weights.requires_grad_(False)
        inputs = [x.clone(), routing.weights.clone(), weights.gate_up, weights.down]
        inputs[place].requires_grad_()
        y = execution("triton")(inputs[0], replace(routing, weights=inputs[1]), weights)
        (gradient,) = torch.autograd.grad(y, inputs[place], direction)
        alike[part] = torch.equal(gradient, whole[place])
    return alike


def flops() -> dict[str, int]:
    """FLOPs of a forward and a backward pass that torch's counter sees."""
    case, counted = CASES["two matrices, all on one expert"], {}
    for name in ("triton", "grouped"):
        torch.manual_seed(0)
        weights = ExpertWeights(case.model(), case.dtype)
        x = torch.randn(len(case.keep), case.hidden)
        with torch_counter() as counter:
            outcome(execution(name), x, case.routing(), weights, torch.ones_like(x))
        counted[name] = counter.get_total_flops()
    return counted


if __name__ == "__main__":
    torch.set_num_threads(1)
    round_to_nearest()
    found = {"errors": {name: errors(case) for name, case in CASES.items()}}
    json.dump(found | {"frozen": frozen(), "flops": flops()}, sys.stdout)
