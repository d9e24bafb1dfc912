"""Routers and capturable backends never wait for the device: tensors without data prove it.

A tensor on torch's device "meta" has a shape and no value: whoever asks it for a value, or for a
shape that depends on values, gets an error. So does a CUDA graph.
"""

import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from moebench.experts.backends import execution
from moebench.experts.catalogue import EXPERT_BACKENDS
from moebench.experts.weights import Experts, ExpertWeights
from moebench.model.attention import KVCache
from moebench.model.decoder import Decoder, StepMode
from moebench.routers.policy import policy
from moebench.routers.routing import Routing, build_routers, known_builders
from moebench.spec.gate import Gate
from moebench.spec.model import ModelSpec

GATES = {
    "softmax": Gate("softmax", renormalise=True),
    "groups": Gate("sigmoid", True, scale=2.5, num_groups=4, top_k_groups=2),
}
OPTIONS: dict[str, dict[str, Any]] = {"ada-k": {"mean_k": 1.4}, "adamoe": {"mean_k": 1.6}}
OURS = ("loop", "grouped", "packed", "triton")


class Kernel:
    """A Triton kernel that only notes that it was launched."""

    def __init__(self) -> None:
        self.grids: list[tuple[int, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *args, **kwargs: self.grids.append(grid)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Kernels in place of Triton's, which need not be installed."""
    import moebench.experts.gpu

    stub = SimpleNamespace(up_and_activate=Kernel(), down_and_combine=Kernel())
    descriptor = ModuleType("triton.tools.tensor_descriptor")
    descriptor.TensorDescriptor = SimpleNamespace(  # type: ignore[attr-defined]
        from_tensor=lambda tensor, block: tensor
    )
    for name in ("triton", "triton.tools"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, descriptor.__name__, descriptor)
    monkeypatch.setattr(moebench.experts.gpu, "kernels", stub, raising=False)
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
    with pytest.raises((NotImplementedError, RuntimeError)):
        run_without_data(router, model, zeros, bounded=False)


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
    """Ada-K may give each of 6 tokens all 4 experts: 24 assignments, at most 6 of an expert."""
    run_without_data("ada-k", tiny, execution("triton"))
    for kernel in (kernels.up_and_activate, kernels.down_and_combine):
        assert kernel.grids == [(5,), (5,)]
