"""Launches of a captured layer, counted on tensors without values, and the op list's.

A launch is an operation that torch dispatches, other than views and allocations without a kernel;
a norm is one. An operation of our own kernels is as many as `ONE_GRID_TOKENS` says.
"""

from typing import Any

import pytest
import torch
from routers.test_contract import Launches

from moebench.routers.gpu import launch, recurrent
from moebench.routers.policy import CHOOSING, ONE_GRID_TOKENS, policy
from moebench.routers.routing import build_routers
from moebench.spec.model import load_model

OPTIONS: dict[str, dict[str, Any]] = {
    "top-k": {},
    "fixed-k": {"k": [1]},
    "ada-k": {"mean_k": 1.4},
    "adamoe": {"mean_k": 1.4},
    "rmoe": {},
    **dict.fromkeys(("skip", "top-p", "entropy-k", "random-k", "regression-k"), {"mean_k": 1.4}),
    "oea": {"own_k": 1},
    "balanced": {},
}


class KernelLaunches(Launches):
    """Counts a kernel's second grid too, and what a norm is made of as one."""

    def number(self, num_tokens: int) -> int:
        ours = sum(name in ("route_scores", "sort_choice") for name in self.calls)
        return len(self.calls) + ours * (num_tokens > ONE_GRID_TOKENS)


@pytest.fixture(autouse=True)
def _on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors without values stand for those of a GPU with Triton."""
    for module in (launch, recurrent):
        monkeypatch.setattr(module, "is_available", lambda scores: True)


@pytest.mark.parametrize("num_tokens", [16, 1100])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", OPTIONS)
def test_the_op_list_of_a_fused_router_has_its_launches(
    name: str, dtype: str, num_tokens: int
) -> None:
    model, declared = load_model("mixtral-8x7b"), policy(name, OPTIONS[name])
    with torch.device("meta"):
        own = (
            build_routers(declared, model, 2, getattr(torch, dtype))[1].eval().requires_grad_(False)
        )
        x = torch.zeros(num_tokens, model.hidden_size, dtype=getattr(torch, dtype))
    with torch.no_grad():
        _, state = own.scores(x)
        with KernelLaunches() as launches:
            own(x, state, bounded=True)
    ops = declared.fused_ops(model, num_tokens, dtype)
    expected, off = sum(op.launches for op in ops), 0 if declared.in_kernel == CHOOSING else 2
    assert launches.number(num_tokens) == pytest.approx(expected, abs=off), launches.calls
    plain = declared.ops(model, num_tokens, dtype)
    for what in ("flops", "waits"):
        assert sum(getattr(op, what) for op in ops) == sum(getattr(op, what) for op in plain)
