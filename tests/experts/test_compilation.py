"""What Triton's compiler makes of the kernels for GPUs that are not here."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import triton_install

from moebench.experts.gpu.comparison import DEVICES, LAYERS, TOKENS
from moebench.experts.gpu.occupancy import LIMITS, SHARED_RESERVED, WARP, occupancy
from moebench.experts.gpu.variants import CAPABILITIES

REPORT = triton_install.ROOT / "results" / "compile" / f"triton-{triton_install.VERSION}"
PROGRAM = """
import json, sys, triton
from moebench.experts.gpu.report import compile_all, compile_beside_vllm, render

def row(one):
    variant = vars(one.variant).copy()
    del variant["function"]
    variant["constants"] = dict(variant["constants"])
    variant["multiples_of_16"] = []
    return vars(one) | variant | vars(one.occupancy) | {"variant": None, "warps": one.warps}

compiled, beside = compile_all(), compile_beside_vllm()
launches = [] if isinstance(beside, str) else [
    row(one.compiled) | {"maker": one.maker, "matmul": one.matmul} for one in beside
]
json.dump({
    "rows": [row(one) for one in compiled],
    "launches": launches,
    "missing": beside if isinstance(beside, str) else None,
    "report": render(compiled, beside, triton.__version__),
    "where": triton.__file__,
}, sys.stdout)
"""


@pytest.fixture(scope="module")
def compiled() -> dict[str, Any]:
    """All kernels for all targets, compiled in a process that has Triton."""
    environment = {**triton_install.environment(), "TRITON_INTERPRET": "0"}
    program = [sys.executable, "-W", "ignore", "-c", PROGRAM]
    done = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def rows(compiled: dict[str, Any], of: str = "rows", **wanted: object) -> list[dict[str, Any]]:
    found = [
        row for row in compiled[of] if all(row[field] == value for field, value in wanted.items())
    ]
    assert found
    return found


@pytest.mark.slow
def test_everything_compiles_without_spills(compiled: dict[str, Any]) -> None:
    assert {80, 90, 100, 120} <= set(CAPABILITIES)
    assert {row["capability"] for row in compiled["rows"]} == set(CAPABILITIES)
    for row in compiled["rows"]:
        assert (row["spills"], row["stack_bytes"]) == (0, 0), row


@pytest.mark.slow
def test_every_block_fits_its_device(compiled: dict[str, Any]) -> None:
    for row in compiled["rows"]:
        assert row["shared_bytes"] <= LIMITS[row["capability"]].shared_bytes_per_block, row
        assert row["blocks"] >= 1, row


BEST = {80: "mma.sync", 89: "mma.sync", 90: "wgmma", 100: "tcgen05", 120: "mma.sync"}


@pytest.mark.slow
@pytest.mark.parametrize("capability", BEST)
def test_every_tile_multiplies_by_the_targets_best_instruction(
    compiled: dict[str, Any], capability: int
) -> None:
    """Tiles of few rows too: their weights are the left operand."""
    for row in rows(compiled, capability=capability, dtype="bf16"):
        if row["phase"] == "training":
            assert row["tensor_cores"], row
            continue
        assert row["tensor_cores"] == ([BEST[capability]] if row["tile"][0] else []), row


@pytest.mark.slow
def test_decode_on_hopper_leaves_registers_for_two_blocks(compiled: dict[str, Any]) -> None:
    decode = rows(compiled, capability=90, phase="decode", dtype="bf16")
    assert {row["tile"][0] for row in decode} == {16, 32}
    for row in decode:
        assert row["registers"] <= 64, row
        assert row["blocks"] >= 2, row


@pytest.mark.slow
def test_weights_come_by_tma_where_there_is_one_and_asynchronously_elsewhere(
    compiled: dict[str, Any],
) -> None:
    for row in compiled["rows"]:
        if not row["tile"][0]:
            continue  # combine: it loads the rows that it adds once
        if row["phase"] == "training":
            assert row["tma_loads"] == 0 and row["async_copies"] > 0, row
            continue
        assert bool(row["tma_loads"]) == (row["capability"] >= 90), row
        gathers = not row["kernel"].startswith("down")
        if row["constants"].get("GATHER"):
            assert row["async_copies"] == 0, row
            continue
        assert bool(row["async_copies"]) == (gathers or row["capability"] < 90), row


@pytest.mark.slow
def test_two_blocks_share_a_multiprocessor_in_decode(compiled: dict[str, Any]) -> None:
    """While one waits for its first weights, another computes."""
    few = [row for row in rows(compiled, dtype="bf16") if row["tile"][0] <= 64]
    assert all(row["blocks"] >= 2 for row in few)


@pytest.mark.slow
def test_no_wgmma_waits_for_the_last_one(compiled: dict[str, Any]) -> None:
    assert not [row for row in compiled["rows"] if row["is_serialised"]]


@pytest.mark.slow
def test_the_kernels_of_a_layer_start_before_the_last_one_ends(compiled: dict[str, Any]) -> None:
    ours = [row for row in compiled["rows"] if "PDL" in row["constants"]]
    assert {row["kernel"] for row in ours} >= {"up, gated", "up", "down", "combine"}
    for row in ours:
        assert row["starts_early"] == (row["capability"] >= 90), row


@pytest.mark.slow
def test_the_committed_report_is_what_the_compiler_says(compiled: dict[str, Any]) -> None:
    title = compiled["report"].splitlines()[0]
    if not title.endswith(triton_install.VERSION):
        pytest.skip(f"another version of Triton is installed here: {title}")
    if compiled["missing"]:
        pytest.skip(compiled["missing"])
    assert (REPORT / "report.md").read_text(encoding="utf-8") == compiled["report"]


@pytest.mark.slow
def test_vllms_kernel_is_compiled_for_the_same_launches(compiled: dict[str, Any]) -> None:
    if compiled["missing"]:
        pytest.skip(compiled["missing"])
    assert (
        len(rows(compiled, "launches", maker="vLLM"))
        == len(DEVICES) * len(LAYERS) * len(TOKENS) * 2
    )
    ours, theirs = (
        [row for row in compiled["launches"] if row["maker"] == maker] for maker in ("ours", "vLLM")
    )
    for one, other in zip(ours, theirs, strict=True):
        assert (one["capability"], one["matmul"]) == (other["capability"], other["matmul"])
        assert other["registers"] > 0 and other["tensor_cores"]
        assert other["tma_loads"] == 0, "vLLM's kernel loads by pointers"


CALCULATOR = """
#include <stdio.h>
#include "cuda_occupancy.h"
int main(void) {
    int major, minor, warps_held, shared_held, shared_limit, reserved;
    int warps, registers, shared;
    while (scanf("%d %d %d %d %d %d %d %d %d", &major, &minor, &warps_held, &shared_held,
                 &shared_limit, &reserved, &warps, &registers, &shared) == 9) {
        cudaOccDeviceProp device = {major, minor, 1024, 32 * warps_held, 65536, 65536, 32, 49152,
                                    shared_held, 1, shared_limit, reserved};
        cudaOccFuncAttributes kernel = {1024, registers, 0, PARTITIONED_GC_OFF,
                                        FUNC_SHMEM_LIMIT_OPTIN, shared, 0};
        cudaOccDeviceState state = {CACHE_PREFER_NONE, SHAREDMEM_CARVEOUT_MAX_SHARED};
        cudaOccResult result;
        int error = cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state,
                                                            32 * warps, shared);
        printf("%d\\n", error ? -error : result.activeBlocksPerMultiprocessor);
    }
    return 0;
}
"""


@pytest.mark.slow
def test_occupancy_is_that_of_nvidias_own_calculator(
    compiled: dict[str, Any], tmp_path: Path
) -> None:
    """Its header comes with Triton; a grid of kernels, tensor memory aside."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    headers = Path(compiled["where"]).parent / "backends" / "nvidia" / "include"
    source, binary = tmp_path / "calculator.c", tmp_path / "calculator"
    source.write_text(CALCULATOR, encoding="utf-8")
    subprocess.run([compiler, f"-I{headers}", "-o", binary, source], check=True)
    grid = [
        (capability, warps, registers, shared)
        for capability in LIMITS
        for warps in (1, 3, 4, 8, 16)
        for registers in (16, 40, 72, 104, 128, 168, 255)
        for shared in (0, 1000, 25_616, 49_152, 66_576, 98_336, 101_376, 131_104, 232_448)
        if 32 * warps * registers <= 65536
    ]
    lines = []
    for capability, warps, registers, shared in grid:
        held = LIMITS[capability]
        device = (held.warps, held.shared_bytes, held.shared_bytes_per_block, SHARED_RESERVED)
        numbers = (*divmod(capability, 10), *device, warps, registers, shared)
        lines.append(" ".join(map(str, numbers)))
    done = subprocess.run([binary], input="\n".join(lines), capture_output=True, text=True)
    expected = [int(line) for line in done.stdout.split()]
    assert len(expected) == len(grid)
    assert min(expected) >= 0
    for one, blocks in zip(grid, expected, strict=True):
        assert occupancy(*one).blocks == blocks, one


def test_tensor_memory_bounds_blackwell_only() -> None:
    assert occupancy(100, 4, 32, 0, tensor_memory_columns=256).blocks == 2
    assert occupancy(90, 4, 32, 0).bound != "tensor memory"
    assert WARP * LIMITS[90].warps == 2048
