"""The Triton backend without a GPU: its numbers by Triton's interpreter, its bounds by laws."""

import itertools
import json
import subprocess
import sys
from typing import Any

import pytest
import torch
import triton_install
from experts import interpreted, launched

from moebench.experts.backends import load_backend
from moebench.experts.gpu.tiles import LEAST_STEPS, MOST_PARTS, TABLE, choose_tiles, parts_of_sum
from moebench.experts.triton import triton
from moebench.experts.weights import ExpertWeights
from moebench.routers.routing import Routing
from moebench.routers.row_tiles import LEAST_ROWS, MOST_ROWS
from moebench.spec.model import ModelSpec


def test_a_device_uses_the_tiles_of_the_newest_row_not_beyond_it() -> None:
    for capability, row in {80: 80, 86: 86, 89: 86, 90: 90, 103: 100, 120: 120, 121: 120}.items():
        assert choose_tiles(capability, 16, 2) == TABLE[row][16]


def test_a_device_older_than_the_table_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs compute capability 8\.0 or newer.* has 7\.5"):
        choose_tiles(75, 16, 2)


def test_there_is_a_tile_for_all_rows_that_a_routing_may_have() -> None:
    sizes = [LEAST_ROWS]
    while sizes[-1] < MOST_ROWS:
        sizes.append(2 * sizes[-1])
    for capability, element_bytes in itertools.product(TABLE, (2, 4)):
        for rows in sizes:
            tiles = choose_tiles(capability, rows, element_bytes)
            assert (tiles.up.rows, tiles.down.rows) == (rows, rows)


def test_a_sum_is_split_until_each_multiprocessor_has_two_programs() -> None:
    for tiles, columns, steps in itertools.product((1, 2, 8, 9), (32, 64), (6, 8, 56, 112)):
        parts = parts_of_sum(tiles, columns, steps, 132)
        programs, most = tiles * columns * parts, min(MOST_PARTS, steps // LEAST_STEPS)
        assert parts == 1 or programs < 2 * 2 * 132
        assert programs >= 2 * 132 or 2 * parts > most


def layer(tiny: ModelSpec, dtype: torch.dtype) -> tuple[torch.Tensor, Routing, ExpertWeights]:
    weights = ExpertWeights(tiny, dtype)
    for parameter in weights.parameters():
        torch.nn.init.normal_(parameter)
    experts = torch.stack([torch.randperm(4)[:2] for _ in range(7)])
    routing = Routing.from_slots(torch.rand(7, 2, dtype=dtype), experts, 4)
    return torch.randn(7, tiny.hidden_size, dtype=dtype), routing, weights


def test_it_runs_on_a_cpu_in_the_interpreter_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="'triton' does not run here: "):
        load_backend("triton", "cpu")


def test_double_precision_is_refused(tiny: ModelSpec) -> None:
    with torch.no_grad(), pytest.raises(ValueError, match="float16; x is torch.float64"):
        triton(*layer(tiny, torch.float64))


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """Results of all cases in the interpreter."""
    environment = {**triton_install.environment(), "TRITON_INTERPRET": "1"}
    program = [sys.executable, "-W", "ignore", interpreted.__file__]
    done = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


TWO = ("multiply_down", "up_and_activate")
# On the norm of the error. Products of narrow types are exact in fp32; what remains is the
# rounding of the hidden rows and of the result, 2 ** -11 (fp16) or 2 ** -8 (bf16) each.
TOLERANCES = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", list(interpreted.names()), ids=lambda name: " / ".join(map(str, name))
)
def test_the_kernels_compute_the_double_sum(found: dict[str, Any], name: interpreted.Name) -> None:
    errors = found["errors"][" / ".join(map(str, name))]
    for run in {"kernels", "residual", "backend"} & errors.keys():
        assert errors[run] < TOLERANCES[name[2]], run
    assert errors.get("idle", True), "tokens without experts must get exact zeros"
    assert errors.get("backend: idle", True)


@pytest.mark.slow
@pytest.mark.parametrize("name", interpreted.ODD)
def test_no_number_of_experts_and_no_size_is_odd(found: dict[str, Any], name: str) -> None:
    assert found["odd"][name] < TOLERANCES["float32"]


@pytest.mark.slow
def test_biases_and_limits_are_those_of_the_definition(found: dict[str, Any]) -> None:
    assert len(found["clamped"]) == 4
    assert all(error < TOLERANCES["float32"] for error in found["clamped"].values())


@pytest.mark.slow
def test_outputs_are_added_in_the_order_of_parts_and_slots(found: dict[str, Any]) -> None:
    assert found["is summed in order"]


@pytest.mark.slow
def test_experts_and_their_residual_are_three_launches(found: dict[str, Any]) -> None:
    assert found["launches"] == 3


@pytest.mark.slow
def test_what_the_launcher_passes_compiles_and_no_step_compiles_a_kernel_anew() -> None:
    """Triton would compile other kernels for 1 and for multiples of 16, in the middle of a run."""
    environment = {**triton_install.environment(), "TRITON_INTERPRET": "0"}
    program = [sys.executable, "-W", "ignore", launched.__file__]
    done = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kernels = [["combine", 0], *([name, rows] for name in TWO for rows in (16, 64, 128))]
    for capability, found in json.loads(done.stdout).items():
        assert found == [[*kernel, int(capability) >= 90] for kernel in kernels]


@pytest.mark.slow
def test_the_backend_keeps_the_contract() -> None:
    """The tests of all backends, with this one interpreted: they skip it where nothing runs it."""
    environment = {**triton_install.environment(), "TRITON_INTERPRET": "1"}
    contract = str(triton_install.ROOT / "tests" / "experts" / "test_backends.py")
    program = [sys.executable, "-m", "pytest", "-q", "-rA", contract, "-k", "triton"]
    done = subprocess.run(
        program, env=environment, cwd=triton_install.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert "PASSED" in done.stdout
    assert "needs a GPU" not in done.stdout


@pytest.mark.slow
def test_both_counters_see_the_kernels_flops(found: dict[str, Any]) -> None:
    assert found["flops"]["triton"] == found["flops"]["grouped"]
    assert found["flops"]["triton"][2]


@pytest.mark.slow
def test_a_replayed_step_routes_and_computes_anew(found: dict[str, Any]) -> None:
    """Decoder steps of every router, captured on one input and replayed on another one."""
    assert set(found["replays"]) == {"top-k", "ada-k", "adamoe", "rmoe"}
    assert all(error < 1e-5 for error in found["replays"].values())
