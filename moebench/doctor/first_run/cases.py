"""Cases of the expert kernels that are easily got wrong, and the slow definition in fp64."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from moebench.experts.backends import execution
from moebench.experts.weights import Experts, ExpertWeights
from moebench.routers.routing import Choice, Routing
from moebench.spec.attention import Attention
from moebench.spec.gate import Gate
from moebench.spec.model import ModelSpec

RUBBISH = 10**9
"""Token and expert index behind the last assignment: a kernel that reads it reads far outside."""


@dataclass(frozen=True)
class KernelCase:
    """Sizes of a layer, how many tokens come, and which slots they keep."""

    name: str
    experts: int
    tokens: int
    slots: int
    hidden: int
    inner: int
    keep: Callable[[Tensor], Tensor] | None = None
    """From uniform random numbers [tokens, slots] to the slots that cost compute."""
    is_gated: bool = True
    on_one: bool = False
    """Whether every token visits the last experts, so that one has several row tiles."""


def _half(draws: Tensor) -> Tensor:
    return draws < 0.5


def _none(draws: Tensor) -> Tensor:
    return draws < 0.0


CASES = (
    KernelCase("fixed k", 8, 7, 2, 256, 512),
    KernelCase("some slots kept", 8, 40, 3, 256, 512, _half),
    KernelCase("sizes that are no multiple of a tile", 3, 40, 2, 130, 66, _half),
    KernelCase("all on one expert", 5, 150, 1, 256, 512, on_one=True),
    KernelCase("nothing kept", 8, 7, 2, 256, 512, _none),
    KernelCase("no tokens", 8, 0, 2, 256, 512),
    KernelCase("one expert", 1, 5, 1, 128, 96),
    KernelCase("two matrices an expert", 8, 40, 2, 256, 512, _half, is_gated=False),
    KernelCase("128 experts", 128, 33, 8, 256, 128, _half),
    KernelCase("257 experts, prefill", 257, 300, 8, 72, 40, _half),
    KernelCase("prefill", 8, 700, 2, 256, 512, _half),
)


@dataclass(frozen=True, eq=False)
class KernelInputs:
    """One case: inputs on the device, and what they imply in fp64 on the host."""

    x: Tensor
    routing: Routing
    """A routing as long as its bound, with rubbish behind the last assignment."""
    weights: ExpertWeights
    exact: Tensor
    """The layer's output in fp64, on the host."""
    is_idle: Tensor
    """Tokens without experts, which get exact zeros."""
    plain: Routing
    """The routing without anything behind its assignments, on the device."""


def case_model(case: KernelCase) -> ModelSpec:
    """A model of one layer with the sizes of a case."""
    return ModelSpec(
        name="first-run",
        source="made for the first run",
        num_layers=1,
        hidden_size=case.hidden,
        intermediate_size=case.inner,
        num_experts=case.experts,
        top_k=min(case.slots, case.experts),
        vocab_size=64,
        attention=Attention(kind="gqa", num_heads=4, num_kv_heads=2, head_dim=8),
        gate=Gate(score="softmax", renormalise=True),
        is_gated=case.is_gated,
    )


def kernel_inputs(case: KernelCase, dtype: torch.dtype, device: torch.device) -> KernelInputs:
    """Draw a case from a fixed seed; the exact result is computed from the rounded inputs."""
    torch.manual_seed(0)
    weights = ExpertWeights(case_model(case), dtype)
    for parameter in weights.parameters():
        torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    x = torch.randn(case.tokens, case.hidden, dtype=dtype)
    order = torch.rand(case.tokens, case.experts).argsort(1)
    experts = order[:, : case.slots]
    if case.on_one:
        experts = torch.full_like(experts, case.experts - 1)
    keep = None if case.keep is None else case.keep(torch.rand(experts.shape))
    choice = Choice(torch.rand(experts.shape).to(dtype), experts, case.experts, keep)
    plain = Routing.from_slots(*choice)
    with torch.no_grad():
        in_fp64 = replace(plain, weights=plain.weights.double())
        exact = execution("loop")(x.double(), in_fp64, deepcopy(weights).double())
    is_idle = torch.bincount(plain.token_indices, minlength=case.tokens) == 0
    routing = _with_rubbish(Routing.bounded(choice.to(device)), plain.num_assignments)
    return KernelInputs(
        x.to(device),
        routing,
        weights.to(device),
        exact,
        is_idle,
        Routing.from_slots(*choice.to(device)),
    )


def _with_rubbish(routing: Routing, count: int) -> Routing:
    """The routing with indices far outside and NaN weights behind its last assignment."""
    tokens, experts = routing.token_indices.clone(), routing.expert_indices.clone()
    weights = routing.weights.clone()
    tokens[count:], experts[count:], weights[count:] = RUBBISH, RUBBISH, float("nan")
    return replace(routing, token_indices=tokens, expert_indices=experts, weights=weights)


def relative_error(y: Tensor, exact: Tensor) -> float:
    """Norm of the error over the norm of the exact tensor, or of the error where that is 0."""
    exact = exact.double()
    size = float(exact.norm()) or 1.0
    return float((y.double() - exact).norm()) / size


def layer_gradients(
    experts: Experts, x: Tensor, routing: Routing, weights: ExpertWeights
) -> dict[str, Tensor]:
    """Gradients of the sum of a fixed random projection of the output, on the host."""
    x = x.detach().clone().requires_grad_()
    mixing = routing.weights.detach().clone().requires_grad_()
    y = experts(x, replace(routing, weights=mixing), weights)
    torch.manual_seed(1)
    direction = torch.randn(y.shape).to(y.device, y.dtype)
    wanted = {"x": x, "routing weights": mixing, "gate_up": weights.gate_up, "down": weights.down}
    found = torch.autograd.grad((y * direction).sum(), list(wanted.values()))
    return {name: gradient.cpu() for name, gradient in zip(wanted, found, strict=True)}
