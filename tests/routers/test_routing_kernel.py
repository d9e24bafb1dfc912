"""The routing kernel: a router's choice, sorted, to the bit as torch makes it."""

import json
import subprocess
import sys

import pytest
import torch
import triton_install
from routers import interpreted_routing
from routers.interpreted_routing import Case

from moebench.routers.gpu import launch
from moebench.routers.policy import known_policies


@pytest.fixture(scope="module")
def found() -> dict[str, list[str]]:
    """Differences of all cases in the interpreter."""
    environment = {**triton_install.environment(), "TRITON_INTERPRET": "1"}
    program = [sys.executable, "-W", "ignore", interpreted_routing.__file__]
    done = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result: dict[str, list[str]] = json.loads(done.stdout)
    return result


@pytest.mark.slow
@pytest.mark.parametrize("case", list(interpreted_routing.cases()), ids=lambda case: case.name)
def test_the_kernels_route_as_torch_does(found: dict[str, list[str]], case: Case) -> None:
    assert found[case.name] == []


def test_every_router_is_among_the_cases() -> None:
    routers = {case.router for case in interpreted_routing.cases()}
    assert routers == set(known_policies()) - {"skewed"}


@pytest.mark.parametrize("columns", [1, 3, 8, 128, 257, 1024])
@pytest.mark.parametrize("num_tokens", [1, 7, 40, 1024, 5000])
def test_blocks_cover_the_tokens_and_hold_all_columns(num_tokens: int, columns: int) -> None:
    cut = launch.blocks(num_tokens, columns)
    assert (cut.programs - 1) * cut.tokens < num_tokens <= cut.programs * cut.tokens
    assert columns <= cut.columns
    assert cut.tokens * cut.columns <= launch.ELEMENTS_OF_BLOCK
    assert 1 <= cut.warps <= 8


def test_no_kernel_runs_for_tokens_on_a_processor() -> None:
    assert not launch.is_available(torch.zeros(4, 8))
