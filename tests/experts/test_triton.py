"""The Triton backend without a GPU: its numbers by Triton's interpreter, its bounds by laws."""

import itertools
import json
import subprocess
import sys
from typing import Any

import pytest
import torch
import triton_install
from experts import interpreted

from moebench.experts.backends import load_backend
from moebench.experts.gpu.tiles import TABLE, TilePhase, choose_phase, choose_tiles, row_tiles
from moebench.experts.triton import triton
from moebench.experts.weights import ExpertWeights
from moebench.routers.routing import Routing
from moebench.spec.model import ModelSpec


def distributions(total: int, experts: int) -> set[tuple[int, ...]]:
    """All ways to give `total` assignments to `experts` experts."""
    counts = itertools.product(range(total + 1), repeat=experts)
    return {one for one in counts if sum(one) == total}


@pytest.mark.parametrize(("experts", "rows"), [(1, 4), (2, 3), (3, 2), (3, 4), (4, 3)])
def test_row_tiles_are_what_the_worst_distribution_needs(experts: int, rows: int) -> None:
    for total in range(9):
        needed = max(sum(-(-n // rows) for n in one) for one in distributions(total, experts))
        assert row_tiles(total, experts, rows) == needed


def test_a_bound_has_tiles_enough_for_fewer_assignments() -> None:
    for bound, experts, rows in itertools.product(range(40), (1, 3, 8), (4, 16)):
        assert row_tiles(bound + 1, experts, rows) >= row_tiles(bound, experts, rows)


def test_a_device_uses_the_tiles_of_the_newest_row_not_beyond_it() -> None:
    for capability, row in {80: 80, 86: 86, 89: 86, 90: 90, 103: 100, 120: 120, 121: 120}.items():
        assert choose_tiles(capability, "decode", 2) == TABLE[row]["decode"]


def test_a_device_older_than_the_table_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs compute capability 8\.0 or newer.* has 7\.5"):
        choose_tiles(75, "decode", 2)


def test_decode_is_up_to_one_small_row_tile_per_expert_on_average() -> None:
    assert choose_phase(16 * 8, 8) == "decode"
    assert choose_phase(16 * 8 + 1, 8) == "prefill"


def layer(tiny: ModelSpec, dtype: torch.dtype) -> tuple[torch.Tensor, Routing, ExpertWeights]:
    weights = ExpertWeights(tiny, dtype)
    for parameter in weights.parameters():
        torch.nn.init.normal_(parameter)
    experts = torch.stack([torch.randperm(4)[:2] for _ in range(7)])
    routing = Routing.from_slots(torch.rand(7, 2, dtype=dtype), experts, 4)
    return torch.randn(7, tiny.hidden_size, dtype=dtype), routing, weights


def test_training_is_that_of_grouped(tiny: ModelSpec) -> None:
    x, routing, weights = layer(tiny, torch.float64)
    gradients = [
        torch.autograd.grad(run(x, routing, weights).sum(), list(weights.parameters()))
        for run in (triton, load_backend("grouped"))
    ]
    assert all(map(torch.equal, *gradients))


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


# On the norm of the error. Products of narrow types are exact in fp32; what remains is the
# rounding of the hidden rows and of the result, 2 ** -11 (fp16) or 2 ** -8 (bf16) each.
TOLERANCES = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(interpreted.names()), ids=" / ".join)
def test_the_kernels_compute_the_double_sum(
    found: dict[str, Any], name: tuple[str, str, str, TilePhase]
) -> None:
    errors = found["errors"][" / ".join(name)]
    for run in {"kernels", "backend"} & errors.keys():
        assert errors[run] < TOLERANCES[name[2]]
        assert errors[f"{run}: idle"], "tokens without experts must get exact zeros"


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
