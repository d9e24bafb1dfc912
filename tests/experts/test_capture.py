"""Routers and capturable backends never wait for the device: tensors without data prove it.

A tensor on torch's device "meta" has a shape and no value: whoever asks it for a value, or for a
shape that depends on values, gets an error. So does a CUDA graph.
"""

import gc
import sys
import weakref
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from moebench.experts.backends import execution
from moebench.experts.catalogue import EXPERT_BACKENDS
from moebench.experts.gpu import launch
from moebench.experts.gpu.tiles import TABLE
from moebench.experts.weights import Experts, ExpertWeights
from moebench.model.attention import KVCache
from moebench.model.decoder import Decoder, StepMode
from moebench.routers.policy import policy
from moebench.routers.routing import Choice, Routing, build_routers, known_builders
from moebench.spec.gate import Gate
from moebench.spec.model import ModelSpec

GATES = {
    "softmax": Gate("softmax", renormalise=True),
    "groups": Gate("sigmoid", True, scale=2.5, num_groups=4, top_k_groups=2),
}
OPTIONS: dict[str, dict[str, Any]] = {"ada-k": {"mean_k": 1.4}, "adamoe": {"mean_k": 1.6}}
OURS = ("loop", "grouped", "packed", "triton")


class Kernel:
    """A Triton kernel that only notes its launches: grid and compile-time constants."""

    def __init__(self) -> None:
        self.launches: list[tuple[tuple[int, ...], dict[str, Any]]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *args, **constants: self.launches.append((grid, constants))


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Kernels in place of Triton's, which need not be installed."""
    import moebench.experts.gpu

    stub = SimpleNamespace(up_and_activate=Kernel(), multiply_down=Kernel(), combine=Kernel())
    descriptor = ModuleType("triton.tools.tensor_descriptor")
    descriptor.TensorDescriptor = SimpleNamespace(  # type: ignore[attr-defined]
        from_tensor=lambda tensor, block: tensor
    )
    for name in ("triton", "triton.tools"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, descriptor.__name__, descriptor)
    for name in ("kernels", "combine_kernel"):
        monkeypatch.setattr(moebench.experts.gpu, name, stub, raising=False)
    return stub


def zeros(x: Tensor, routing: Routing, weights: ExpertWeights) -> Tensor:
    return torch.zeros_like(x)


@torch.inference_mode()
def run_without_data(
    router: str, model: ModelSpec, experts: Experts, bounded: bool = True
) -> torch.Size:
    """A decode step of two decoder layers on tensors that have no data."""
    with torch.device("meta"):
        decoder = Decoder(model, 2, torch.bfloat16)
        routers = build_routers(policy(router, OPTIONS.get(router)), model, 2, torch.bfloat16)
        cache = KVCache(model.attention, (2, 6, 9), torch.bfloat16, "meta")
        cache.length = 8
        x = torch.empty(6, 1, model.hidden_size, dtype=torch.bfloat16)
        mode = StepMode("decoder", cache, bounded=bounded)
        y, _ = decoder(x, [one.eval() for one in routers], experts, mode)
        return y.shape


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("router", sorted(known_builders()))
def test_no_router_waits_for_the_device_where_routings_are_bounded(
    router: str, gate: str, tiny: ModelSpec
) -> None:
    model = replace(tiny, num_experts=16, top_k=4, gate=GATES[gate])
    assert run_without_data(router, model, zeros) == (6, 1, model.hidden_size)
    ops = policy(router, OPTIONS.get(router)).ops(model, 6, "bfloat16")
    if sum(op.waits for op in ops):
        with pytest.raises((NotImplementedError, RuntimeError)):
            run_without_data(router, model, zeros, bounded=False)
    else:
        assert run_without_data(router, model, zeros, bounded=False)[0] == 6


@pytest.mark.parametrize("name", OURS)
def test_backends_that_can_be_captured_are_those_that_say_so(
    name: str, tiny: ModelSpec, kernels: SimpleNamespace
) -> None:
    if EXPERT_BACKENDS[name].is_capturable:
        assert run_without_data("ada-k", tiny, execution(name)) == (6, 1, tiny.hidden_size)
    else:
        with pytest.raises((NotImplementedError, RuntimeError)):
            run_without_data("ada-k", tiny, execution(name))


def test_the_grids_of_the_kernels_are_those_of_the_bound(
    tiny: ModelSpec, kernels: SimpleNamespace
) -> None:
    """Ada-K may give each of 6 tokens all 4 experts: 24 assignments, in tiles of 16 rows."""
    run_without_data("ada-k", tiny, execution("triton"))
    grids = {name: [grid for grid, _ in one.launches] for name, one in vars(kernels).items()}
    assert grids["up_and_activate"] == [(5,), (5,)]
    assert grids["multiply_down"] == [(5, 1), (5, 1)]
    assert grids["combine"] == [(6, 1), (6, 1)]


def test_a_graphs_bound_does_not_choose_the_kernel(
    tiny: ModelSpec, kernels: SimpleNamespace
) -> None:
    """The expected load does: the same for a routing and its bound, whatever k varies in."""
    weights, x = ExpertWeights(tiny, torch.bfloat16), torch.zeros(200, tiny.hidden_size).bfloat16()
    keep = torch.arange(4).repeat(200, 1) < 1
    choice = Choice(torch.rand(200, 4), torch.arange(4).repeat(200, 1), 4, keep)
    for expected in (20.0, 200.0):
        for routing in (Routing.bounded(choice), Routing.from_slots(*choice)):
            with torch.no_grad():
                execution("triton")(x, replace(routing, expected_assignments=expected), weights)
    for kernel in (kernels.up_and_activate, kernels.multiply_down):
        rows = [constants["BLOCK_M"] for _, constants in kernel.launches]
        assert rows == [16, 16, 64, 64]


def test_a_descriptor_lives_as_long_as_the_memory_that_it_describes(
    tiny: ModelSpec, kernels: SimpleNamespace
) -> None:
    stack, tile = torch.zeros(4, 32, 16), TABLE[90][16].up
    first = launch._weights(stack, tile, True)
    assert launch._weights(stack, tile, True) is first
    assert first.data_ptr() == stack.data_ptr()
    stack.data = torch.ones(4, 32, 16)
    second = launch._weights(stack, tile, True)
    assert second is not first
    assert second.data_ptr() == stack.data_ptr()
    gone = weakref.ref(second)
    del stack, second
    gc.collect()
    assert gone() is None
