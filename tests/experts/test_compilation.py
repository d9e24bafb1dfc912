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
from moebench.experts.gpu.occupancy import KIB, LIMITS, SHARED_RESERVED, WARP, occupancy

REPORT = triton_install.ROOT / "results" / "compile" / f"triton-{triton_install.VERSION}"
DATA = triton_install.ROOT / "moebench" / "data"
TITLE = f"# Compile report: ragged expert kernels, Triton {triton_install.VERSION}"
BEST = {80: "mma.sync", 89: "mma.sync", 90: "wgmma", 100: "tcgen05", 120: "mma.sync"}

Row = dict[str, str]


@pytest.fixture(scope="module")
def tables() -> list[list[Row]]:
    """The tables of the committed report, each a list of rows by the titles of the columns."""
    text = (REPORT / "report.md").read_text(encoding="utf-8")
    assert text.startswith(TITLE)
    found: list[list[Row]] = []
    titles: list[str] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            titles = []
        elif not titles:
            titles = cells
            found.append([])
        elif set(cells) != {"---"}:
            found[-1].append(dict(zip(titles, cells, strict=True)))
    return found


@pytest.fixture(scope="module")
def kernels(tables: list[list[Row]]) -> list[Row]:
    """Our kernels, of every target."""
    assert {row["target"] for row in tables[0]} == {f"sm_{target}" for target in BEST}
    return tables[0]


def rows_of(row: Row) -> int:
    """Rows of a kernel's tile; 0 where it multiplies no matrices."""
    return int(row["tile"].partition(" x ")[0] or 0)


def target_of(row: Row) -> int:
    return int(row["target"].removeprefix("sm_"))


def test_nothing_spills_and_every_block_fits_its_device(kernels: list[Row]) -> None:
    for row in kernels:
        assert (row["spills"], row["stack"]) == ("0", "0"), row
        assert float(row["shared KiB"]) <= int(row["limit"]), row
        assert int(row["limit"]) * KIB == LIMITS[target_of(row)].shared_bytes_per_block, row
        assert int(row["blocks per SM"]) >= 1, row


def test_every_tile_multiplies_by_the_targets_best_instruction(kernels: list[Row]) -> None:
    """Inference's tiles of few rows too: their weights are the left operand."""
    for row in kernels:
        if row["dtype"] == "bf16" and rows_of(row):
            is_best = row["tensor cores"] == BEST[target_of(row)]
            is_small = row["phase"] == "training" and rows_of(row) < 64
            assert is_best or (is_small and row["tensor cores"] == "mma.sync"), row
    packed = [row for row in kernels if row["phase"] == "packed"]
    assert {row["dtype"] for row in packed} == {"fp8", "mxfp4"}
    assert all(row["tensor cores"] == BEST[target_of(row)] for row in packed)
    fp32 = {row["tensor cores"] for row in kernels if row["dtype"] == "fp32"}
    assert fp32 == {"none"}


def test_decode_on_hopper_leaves_registers_for_two_blocks(kernels: list[Row]) -> None:
    """Required were wgmma, at most 96 registers and two blocks; 64 registers were the aim."""
    decode = [
        row
        for row in kernels
        if (row["target"], row["dtype"], row["phase"]) == ("sm_90", "bf16", "decode")
    ]
    assert {rows_of(row) for row in decode} == {16, 32}
    for row in decode:
        assert int(row["registers"]) <= 64, row
        assert int(row["blocks per SM"]) >= 2, row
        assert row["tensor cores"] == "wgmma", row


def test_weights_come_by_tma_where_there_is_one_and_asynchronously_elsewhere(
    kernels: list[Row],
) -> None:
    inference = [row for row in kernels if row["phase"] in ("decode", "prefill")]
    assert inference
    for row in inference:
        has_tma = target_of(row) >= 90
        assert ("TMA" in row["tile loads"]) == has_tma, row
        # Blackwell's large tiles gather rows by TMA, all others by cp.async.
        gathers = not row["kernel"].startswith("down")
        is_large = (row["target"], row["dtype"], rows_of(row)) == ("sm_100", "bf16", 128)
        is_copied = (gathers and not is_large) or not has_tma
        assert ("cp.async" in row["tile loads"]) == is_copied, row


def test_two_blocks_share_a_multiprocessor_in_small_tiles(kernels: list[Row]) -> None:
    """While one waits for its first weights, another computes."""
    small = [row for row in kernels if row["dtype"] == "bf16" and 0 < rows_of(row) <= 64]
    assert small
    assert all(int(row["blocks per SM"]) >= 2 for row in small)


def test_the_report_has_vllms_kernel_beside_ours(tables: list[list[Row]]) -> None:
    assert len(tables[1]) == len(DEVICES) * len(LAYERS) * len(TOKENS) * 2
    for row in tables[1]:
        ours, theirs = row["tile loads"].split(" / ")
        assert "TMA" not in theirs, "vLLM's kernel loads by pointers"
        assert ("TMA" in ours) == (int(row["target"][3:].partition(" ")[0]) >= 90), row
        assert all(int(number) > 0 for number in row["registers"].split(" / "))


PROGRAM = """
import itertools, json, sys, triton
from moebench.experts.gpu import report
from moebench.experts.gpu.comparison import default_tile_variants, launches
from moebench.experts.gpu.compilation import compile_variant
from moebench.experts.gpu.variants import CAPABILITIES, all_variants

out, table = sys.argv[1:]
chosen, number = {}, 0
for capability in CAPABILITIES:
    for variant in all_variants(capability):
        number += 1
        # Inference in bf16 on Hopper, and of every other kind the last kernel for three targets.
        kind = capability, variant.phase, variant.dtype
        if kind in ((90, "decode", "bf16"), (90, "prefill", "bf16")):
            kind = (*kind, variant.kernel, variant.tile)
        if capability in (80, 90, 100):
            chosen[kind] = capability, variant
few = ("h200-sxm",), ("mixtral-8x7b",), (1, 4096)
compiled = []
def keep(capability, variant):
    compiled.append(compile_variant(capability, variant))
    return compiled[-1]
report.compile_variant = keep
report.all_variants = lambda capability: [v for c, v in chosen.values() if c == capability]
report.launches = lambda vllm: launches(vllm, *few)
report.default_tile_variants = lambda vllm: itertools.islice(default_tile_variants(vllm), 2)
missing = None
try:
    report.load_vllm()
except ValueError as error:
    missing = str(error)
code = report.main(["--out", out, *([] if missing else ["--table", table])])
layer = [one for one in compiled[:len(chosen)] if one.variant.phase != "routing"]
ours = [one for one in layer if "PDL" in one.variant.constants]  # whose kernels wait
json.dump({
    "code": code,
    "starts early": [[one.capability, one.starts_early] for one in ours],
    "serialised": [str(report.kernel_row(one)) for one in compiled if one.is_serialised],
    "missing": missing,
    "compiled": len(chosen),
    "number": number,
    "where": triton.__file__,
    "version": triton.__version__,
}, sys.stdout)
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the command writes the report of many kernels, and the table of their tiles."""
    return tmp_path_factory.mktemp("written")


@pytest.fixture(scope="module")
def compiled(written: Path) -> dict[str, Any]:
    """What the compiler says of many kernels, in a process that has Triton."""
    environment = {**triton_install.environment(), "TRITON_INTERPRET": "0"}
    files = [str(written / "report.md"), str(written / "compiled.csv")]
    program = [sys.executable, "-W", "ignore", "-c", PROGRAM, *files]
    done = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def new_lines(written: Path, committed: Path) -> list[str]:
    """Lines of a written file that the committed one does not have."""
    kept = set(committed.read_text(encoding="utf-8").splitlines())
    lines = (written / committed.name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line not in kept]


@pytest.mark.slow
def test_the_committed_report_is_what_the_compiler_says(
    compiled: dict[str, Any], kernels: list[Row], written: Path
) -> None:
    if compiled["version"] != triton_install.VERSION:
        pytest.skip(f"another version of Triton is installed here: {compiled['version']}")
    assert compiled["code"] == 0
    left_out = compiled["missing"] and f"Left out: {compiled['missing']}."
    assert new_lines(written, REPORT / "report.md") == ([left_out] if left_out else [])
    rows = (written / "report.md").read_text(encoding="utf-8").count("| sm_")
    assert rows == compiled["compiled"] + (0 if left_out else 2 * 2)
    assert len(kernels) == compiled["number"]


@pytest.mark.slow
def test_the_table_that_predictions_read_is_what_the_compiler_says(
    compiled: dict[str, Any], written: Path
) -> None:
    if compiled["missing"] or compiled["version"] != triton_install.VERSION:
        pytest.skip(compiled["missing"] or "another version of Triton is installed here")
    assert new_lines(written, DATA / "tiles" / "compiled.csv") == []
    table = (written / "compiled.csv").read_text(encoding="utf-8")
    assert table.count("\nvLLM,") == 2 and "\nours," in table


@pytest.mark.slow
def test_no_wgmma_waits_for_the_last_one(compiled: dict[str, Any]) -> None:
    assert compiled["serialised"] == []


@pytest.mark.slow
def test_the_kernels_of_a_layer_start_before_the_last_one_ends(compiled: dict[str, Any]) -> None:
    assert compiled["starts early"]
    for capability, starts_early in compiled["starts early"]:
        assert starts_early == (capability >= 90)


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
