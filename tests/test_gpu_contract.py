"""What must hold on a GPU: `pytest tests/test_gpu_contract.py --device cuda` asks a real one.

Without the option the same tests run on an imitated GPU, which shows that they can pass.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from moebench.calibrate.microbenchmark import microbenchmarks
from moebench.calibrate.products import Size
from moebench.experts.backends import load_backend, why_not
from moebench.experts.weights import ExpertWeights
from moebench.measure.clocks import CudaClock, StageTimer
from moebench.measure.environment import describe_gpu
from moebench.measure.graph import LEAST_RING, capture
from moebench.measure.memory import measure_memory
from moebench.model.decoder import Decoder, StepMode
from moebench.model.random_numbers import fill_normal
from moebench.routers.gpu import launch
from moebench.routers.policy import policy
from moebench.routers.routing import Choice, Routing, build_routers
from moebench.spec.hardware import hardware_aliases, load_hardware
from moebench.spec.model import ModelSpec

ROUTERS: dict[str, dict[str, Any]] = {
    "top-k": {},
    "ada-k": {"mean_k": 1.4},
    "adamoe": {"mean_k": 1.6},
    "rmoe": {},
}
TOLERANCES = {torch.float32: 1e-6, torch.bfloat16: 8e-3}
"""Largest relative distance from fp64, of our kernels by type."""


@pytest.fixture
def triton(gpu: torch.device) -> Callable[..., Tensor]:
    """The kernels, where they run."""
    if why := why_not("triton", gpu):
        pytest.skip(f"triton: {why}")
    return load_backend("triton", gpu)


def choice(gpu: torch.device, num_tokens: int, num_experts: int = 4) -> Choice:
    """Up to three experts a token, some of none, drawn on the CPU."""
    experts = torch.stack([torch.randperm(num_experts)[:3] for _ in range(num_tokens)])
    keep = torch.rand(num_tokens, 3) > 0.4
    return Choice(torch.rand(num_tokens, 3), experts, num_experts, keep).to(gpu)


def layer(
    gpu: torch.device, model: ModelSpec, dtype: torch.dtype, num_tokens: int
) -> tuple[Tensor, ExpertWeights]:
    weights = ExpertWeights(model, dtype).to(gpu)
    for index, parameter in enumerate(weights.parameters()):
        fill_normal(parameter.data, 0.0, parameter.shape[2] ** -0.5, (3, index))
    return torch.randn(num_tokens, model.hidden_size).to(gpu, dtype), weights


def exact(x: Tensor, routing: Routing, weights: ExpertWeights) -> Tensor:
    """The layer in fp64, by the loop over experts."""
    wide = replace(routing, weights=routing.weights.double())
    with torch.no_grad():
        return load_backend("loop", x.device)(x.double(), wide, weights.double())


def distance(y: Tensor, expected: Tensor) -> float:
    return float((y.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("num_tokens", [1, 9, 150])
@pytest.mark.parametrize("dtype", TOLERANCES)
@torch.no_grad()
def test_kernels_compute_the_layer_with_rubbish_behind_the_bound(
    dtype: torch.dtype, num_tokens: int, gpu: torch.device, triton: Any, tiny: ModelSpec
) -> None:
    x, weights = layer(gpu, tiny, dtype, num_tokens)
    drawn = choice(gpu, num_tokens)
    flat, bounded = Routing.from_slots(*drawn), Routing.bounded(drawn)
    tokens, shares = bounded.token_indices.clone(), bounded.weights.clone()
    tokens[flat.num_assignments :], shares[flat.num_assignments :] = 10**6, float("nan")
    bounded = replace(bounded, token_indices=tokens, weights=shares)
    found = [triton(x, routing, weights) for routing in (flat, bounded)]
    expected = exact(x, flat, weights)
    for y in found:
        assert distance(y, expected) <= TOLERANCES[dtype]
        assert not y[drawn.keep.sum(1) == 0].any()


def test_gradients_of_the_kernels_are_those_of_grouped(
    gpu: torch.device, triton: Any, tiny: ModelSpec
) -> None:
    x, weights = layer(gpu, tiny, torch.float32, 40)
    drawn, found = choice(gpu, 40), []
    for experts in (triton, load_backend("grouped", gpu)):
        own, shares = x.clone().requires_grad_(), drawn.weights.clone().requires_grad_()
        routing = Routing.from_slots(shares, *drawn[1:])
        experts(own, routing, weights).square().sum().backward()
        found.append([own.grad, shares.grad, *(p.grad.clone() for p in weights.parameters())])
        weights.zero_grad()
    for ours, expected in zip(*found, strict=True):
        assert distance(ours, expected.double()) < 1e-5


@pytest.mark.parametrize("router", ROUTERS)
@torch.inference_mode()
def test_a_graph_of_a_router_follows_its_inputs(
    router: str, gpu: torch.device, triton: Any, tiny: ModelSpec
) -> None:
    with gpu:
        decoder = Decoder(tiny, 2, torch.float32)
        built = build_routers(policy(router, ROUTERS[router]), tiny, 2, torch.float32)
    for index, parameter in enumerate(decoder.parameters()):
        fill_normal(parameter.data, 0.0, 0.1, (5, index))
    routers = [one.eval() for one in built]

    def step(x: Tensor, experts: Any = triton, bounded: bool = True) -> Tensor:
        y: Tensor = decoder(x, routers, experts, StepMode("moe", bounded=bounded))[0]
        return y

    grouped = load_backend("grouped", gpu)
    ring = torch.randn(LEAST_RING, 20, 1, tiny.hidden_size).to(gpu)
    graph = capture(step, lambda x: step(x, grouped, False), ring)
    assert distance(graph.replay(ring[9]), step(ring[9], grouped, False).double()) < 1e-5


@pytest.mark.parametrize("router", ROUTERS)
@torch.inference_mode()
def test_the_routing_kernel_chooses_and_sorts_as_torch_does(
    router: str, gpu: torch.device, tiny: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not launch._has_triton():
        pytest.skip("Triton is not there, or does not interpret here")
    with gpu:
        (built,) = build_routers(policy(router, ROUTERS[router]), tiny, 1, torch.float32)
    x = torch.randn(70, tiny.hidden_size).to(gpu)
    fused = built.eval()(x, None, True)[0]
    monkeypatch.setattr(launch, "_has_triton", lambda: False)
    plain = built(x, None, True)[0]
    kept = int(plain.tokens_per_expert.sum())
    for name in ("tokens_per_expert", "token_indices", "expert_indices", "weights"):
        ours, theirs = (getattr(routing, name)[:kept] for routing in (fused, plain))
        torch.testing.assert_close(ours, theirs)


def test_memory_of_a_step_is_what_it_allocates(gpu: torch.device) -> None:
    def step() -> None:
        torch.empty(2**24, device=gpu).fill_(1.0)

    step()
    found = measure_memory(step, gpu, 0.0, 0.0)
    assert found.peak == 2**26
    assert found.device_used is not None and found.device_used > 0


def test_clock_and_stages_time_the_same_work(gpu: torch.device) -> None:
    a, stages = torch.randn(256, 256, device=gpu), StageTimer(gpu)

    def work() -> None:
        stages.start()
        a @ a
        stages.mark("product")

    work()
    stages = StageTimer(gpu)
    whole = CudaClock(gpu).time(work)
    assert 0 < stages.seconds()["product"] <= whole


def test_the_board_has_a_datasheet_and_calibration_stays_below_it(gpu: torch.device) -> None:
    board = describe_gpu(gpu)
    name = hardware_aliases().get(board.name)
    if name is None:
        pytest.skip(f"{board.name} has no datasheet here")
    hardware = load_hardware(name)
    grid = {"plain": tuple(Size(rows, 1024, 1024) for rows in (1, 16, 256))}
    found = microbenchmarks(gpu, budget=0.01, grid=grid)
    assert 0 < found.read_bandwidth <= hardware.memory_bandwidth
    assert 0 < found.small_op < 1e-3
    for sample in found.matmuls:
        flops = 2 * sample.rows * sample.n * sample.k
        assert 0 < flops / sample.seconds <= hardware.peak["bfloat16"]
