"""The routing kernel: a router's choice, sorted, to the bit as torch makes it."""

import json
import subprocess
import sys
from typing import Any

import pytest
import torch
import triton_install
from routers import interpreted_routing
from routers.interpreted_routing import Case

from moebench.experts.catalogue import EXPERT_BACKENDS
from moebench.routers.gpu import launch
from moebench.routers.policy import known_policies, policy
from moebench.spec.case import Workload
from moebench.spec.layer import layer_ops
from moebench.spec.model import load_model


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What all cases give in the interpreter."""
    environment = {**triton_install.environment(), "TRITON_INTERPRET": "1"}
    program = [sys.executable, "-W", "ignore", interpreted_routing.__file__]
    done = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.slow
@pytest.mark.parametrize("case", list(interpreted_routing.cases()), ids=lambda case: case.name)
def test_the_kernels_route_as_torch_does(found: dict[str, Any], case: Case) -> None:
    assert found["routers"][case.name] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", interpreted_routing.CELLS)
def test_the_cell_kernel_is_torchs_cell_and_gate(found: dict[str, Any], name: str) -> None:
    """In 16 bits torch rounds after each of some ten operations, the kernel once."""
    tolerance = 1e-6 if interpreted_routing.CELLS[name].dtype == "float32" else 1e-2
    assert max(found["cells"][name].values()) < tolerance


REQUIRED = {"top-k": 6, "ada-k": 6, "adamoe": 6, "rmoe": 8}


@pytest.mark.slow
@pytest.mark.parametrize("name", REQUIRED)
def test_a_captured_layer_has_few_launches(found: dict[str, Any], name: str) -> None:
    """Norm, scores and routing, both matmuls, and combine with the residual; RMoE's cell."""
    launches = found["layers"][name]
    assert len(launches) <= REQUIRED[name], launches
    model, backend = load_model("mixtral-8x7b"), EXPERT_BACKENDS["triton"]
    workload = Workload("decode", "moe", batch=7, context_length=1)
    declared = policy(name, {"mean_k": 1.4} if name in ("ada-k", "adamoe") else {})
    load = declared.load(model, 7, declared.operating_point(model))
    router = declared.fused_ops(model, 7, "bfloat16")
    ops = layer_ops(model, workload, router, load, backend)
    assert sum(op.launches for op in ops) == len(launches), launches


def test_every_router_is_among_the_cases() -> None:
    routers = {case.router for case in interpreted_routing.cases()}
    assert routers == set(known_policies()) - {"skewed"}


@pytest.mark.parametrize("columns", [1, 3, 8, 128, 257, 1024])
@pytest.mark.parametrize("num_tokens", [1, 7, 40, 1024, 5000])
def test_blocks_cover_the_tokens_and_hold_all_columns(num_tokens: int, columns: int) -> None:
    cut = launch.blocks(num_tokens, columns)
    assert (cut.programs - 1) * cut.tokens < num_tokens <= cut.programs * cut.tokens
    assert columns <= cut.columns
    assert cut.tokens * cut.columns <= launch.ELEMENTS_OF_ONE
    assert 1 <= cut.warps <= 8


def test_no_kernel_runs_for_tokens_on_a_processor() -> None:
    assert not launch.is_available(torch.zeros(4, 8))
