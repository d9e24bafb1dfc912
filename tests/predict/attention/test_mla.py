"""Laws of multi-head latent attention: kernels, whole blocks, and tables of both."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moebench.calibrate.cells import read_cells
from moebench.calibrate.operations.kinds import kind_of
from moebench.calibrate.operations.table import groups_of, read_operations
from moebench.predict.arrays import Floats
from moebench.predict.attention.mla import (
    MLA_DECODE,
    MLA_PREFILL,
    MlaDecodeCalls,
    MlaPrefillCalls,
)
from moebench.predict.attention.mla_block import MLA_DECODE_BLOCK, MLA_PREFILL_BLOCK
from moebench.predict.attention.mla_products import MlaBlockCalls, block_matmuls
from moebench.predict.attention.mla_software import decode_variant, is_absorbed, prefill_variant
from moebench.predict.operations.operation import Operation
from moebench.predict.operations.price import priced
from moebench.spec.hardware import HardwareSpec, load_hardware

H100 = load_hardware("h100-sxm")
GRID = [
    (batch, new, prefix, heads)
    for batch in (1, 3, 64, 1024)
    for new in (1, 77, 4096)
    for prefix in (0, 100, 30000)
    for heads in (1, 16, 128)
]
BATCH, NEW, PREFIX, HEADS = np.array(GRID, dtype=float).T
ONE = np.ones(len(GRID))
DECODE = MlaDecodeCalls(
    BATCH, NEW, PREFIX + NEW, HEADS, 576 * ONE, 512 * ONE, 2 * ONE, ONE, 0 * ONE
)
PREFILL = MlaPrefillCalls(BATCH, NEW, PREFIX, HEADS, 192 * ONE, 128 * ONE, 2 * ONE)
DEEPSEEK_V3 = MlaBlockCalls(
    BATCH, NEW, PREFIX, HEADS, *(size * ONE for size in (7168, 1536, 512, 128, 64, 128, 2, 1)),
    np.full(len(GRID), "bfloat16"),
)  # fmt: skip
CALLS = (
    (MLA_DECODE, DECODE),
    (MLA_PREFILL, PREFILL),
    (MLA_DECODE_BLOCK, DEEPSEEK_V3),
    (MLA_PREFILL_BLOCK, DEEPSEEK_V3),
)
every_operation = pytest.mark.parametrize(
    ("operation", "calls"), CALLS, ids=[operation.name for operation, _ in CALLS]
)


def seconds(
    operation: Operation, calls: Any, hardware: HardwareSpec = H100, warm: bool = False
) -> Floats:
    return operation.time(operation.parameters(), hardware, calls, warm)


def is_never_faster(slower: Floats, faster: Floats) -> bool:
    return bool(np.isfinite(slower).all() and (slower >= faster * (1 - 1e-12)).all())


@every_operation
def test_more_sequences_or_keys_are_never_faster(operation: Operation, calls: Any) -> None:
    base = seconds(operation, calls)
    names = ["batch", "keys" if operation is MLA_DECODE else "prefix"]
    for name in names:
        for more in (1, 64, 1000):
            grown = dataclasses.replace(calls, **{name: getattr(calls, name) + more})
            assert is_never_faster(seconds(operation, grown), base), (name, more)


@every_operation
def test_more_bandwidth_or_peak_is_never_slower(operation: Operation, calls: Any) -> None:
    base = seconds(operation, calls)
    faster = dataclasses.replace(H100, memory_bandwidth=2 * H100.memory_bandwidth)
    assert is_never_faster(base, seconds(operation, calls, faster))
    faster = dataclasses.replace(H100, peak={name: 2 * rate for name, rate in H100.peak.items()})
    assert is_never_faster(base, seconds(operation, calls, faster))


@every_operation
def test_replayed_data_in_l2_are_never_slower_and_a_smaller_cache_neither(
    operation: Operation, calls: Any
) -> None:
    assert is_never_faster(seconds(operation, calls), seconds(operation, calls, warm=True))
    half = dataclasses.replace(calls, kv_bytes=ONE)
    assert is_never_faster(seconds(operation, calls), seconds(operation, half))


def test_a_long_cache_is_read_once_for_all_heads_of_a_tile() -> None:
    """16 heads of DeepSeek-V3 attend to 1,152 bytes a key: bandwidth bounds them from below."""
    parameters = MLA_DECODE.parameters()
    here = (NEW == 1) & (PREFIX == 30000) & (HEADS <= 16) & (BATCH == 1024)
    found = seconds(MLA_DECODE, DECODE)[here]
    reading = 1024 * 30001 * 1152 / (H100.memory_bandwidth * parameters.bandwidth)
    assert (found > reading).all() and (found < 1.1 * reading).all()


def test_a_kernel_that_parts_no_sequence_takes_as_long_for_one_as_for_many() -> None:
    """A100, TensorRT-LLM 1.0.0: 15.5 ms at 131,072 keys, for 1 sequence as for 16."""
    unsplit = dataclasses.replace(DECODE, splits=0 * ONE)
    times = seconds(MLA_DECODE, unsplit)
    long = (NEW == 1) & (PREFIX == 30000) & (HEADS == 16)
    one, three = times[long & (BATCH == 1)], times[long & (BATCH == 3)]
    assert three == pytest.approx(one, rel=0.01)
    assert (one > 5 * seconds(MLA_DECODE, DECODE)[long & (BATCH == 1)]).all()


def test_a_block_of_all_heads_has_the_published_weights() -> None:
    """DeepSeek-V3 (2412.19437): 187.1M weights of attention in each of 61 layers, of 671B."""
    whole = DEEPSEEK_V3[HEADS == 128]
    for absorbed in (True, False):
        found = block_matmuls(H100, whole, absorbed).weight_bytes
        assert found == pytest.approx(2 * 187_105_280)


def test_without_a_query_rank_the_projections_are_those_of_deepseek_v2_lite() -> None:
    """DeepSeek-V2-Lite: 16 heads, hidden 2048, queries projected at once to 16 x 192."""
    lite = dataclasses.replace(DEEPSEEK_V3, query_rank=0 * ONE, hidden_size=2048 * ONE)[HEADS == 16]
    found = block_matmuls(H100, lite, is_absorbed=True).weight_bytes
    weights = 2048 * (16 * 192 + 576) + 512 * 16 * 256 + 16 * 128 * 2048
    assert found == pytest.approx(2 * weights)
    assert np.isfinite(seconds(MLA_DECODE_BLOCK, lite)).all()


def test_narrow_weights_save_time_only_where_weights_are_read() -> None:
    narrow = dataclasses.replace(DEEPSEEK_V3, weights=np.full(len(GRID), "float8"))
    ratio = seconds(MLA_DECODE_BLOCK, narrow) / seconds(MLA_DECODE_BLOCK, DEEPSEEK_V3)
    few = (BATCH * NEW == 1) & (HEADS == 128) & (PREFIX == 0)
    assert (ratio[few] < 0.85).all()
    for weights in ("int8", "int4", "nvfp4", "float16"):
        typed = dataclasses.replace(DEEPSEEK_V3, weights=np.full(len(GRID), weights))
        for name in ("a100-sxm-80gb", "h100-sxm", "b200-sxm", "rtx-4090"):
            assert np.isfinite(seconds(MLA_DECODE_BLOCK, typed, load_hardware(name))).all()


def test_kernels_are_told_apart_by_instruction_and_cache() -> None:
    b200, b300 = load_hardware("b200-sxm"), load_hardware("b300-sxm")
    assert decode_variant("vllm", b200, "fp8", 16) == decode_variant("vllm", b300, "float8", 128)
    assert prefill_variant(H100, "bf16") != prefill_variant(b200, "bf16")
    rtx = load_hardware("rtx-pro-6000")
    assert decode_variant("trtllm", rtx, "fp8", 128) != decode_variant("trtllm", rtx, "fp8", 64)
    assert decode_variant("trtllm", rtx, "bf16", 8) != decode_variant("sglang", rtx, "bf16", 8)
    assert is_absorbed("vllm", "prefill", "FLASHMLA")
    assert not is_absorbed("trtllm", "prefill", "DEFAULT")


KEYS = "system,framework,version,kernel_source"
BLOCKS = f"""{KEYS},phase,gemm_type,heads,kv_dtype,batch,seq,latency_us
h200_sxm,vllm,0.24.0,FLASHMLA,prefill,fp8_block,16,fp8,1,64,100
h200_sxm,vllm,0.24.0,FLASH_ATTN,prefill,fp8_block,16,fp8,1,640,100
gb300,vllm,0.27.0,SOMETHING_NEW,decode,nvfp4,12,bf16,4,1000,100
gb300,vllm,0.27.0,SOMETHING_NEW,decode,fp8,12,bf16,4,1000,100
l40s,another,1,x,prefill,bf16,3,fp8,4,1,100
"""
KERNELS = f"""{KEYS},heads,kv_dtype,batch,seq,latency_us
b300_sxm,sglang,0.6,trtllm_mla,16,fp8,1,64,100
l40s,trtllm,1.0.0,default,16,bf16,1,64,100
h200_sxm,another,9,x,1,bf16,1,640,100
"""


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("mla_block.csv", BLOCKS, "mla-block"),
        ("decode.csv", KERNELS, "mla-decode"),
        ("prefill.csv", KERNELS, "mla-prefill"),
    ],
)
def test_every_well_formed_row_of_a_table_is_priced(
    tmp_path: Path, name: str, text: str, kind: str
) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    cells = read_cells(path)
    found = kind_of(cells)
    assert found is not None and found.name == kind
    table = read_operations(cells, found)
    groups, skipped = groups_of(table)
    assert not table.problems and not skipped
    assert sorted(np.concatenate([rows.rows for rows in groups])) == [*range(len(table))]
    for rows in groups:
        price = priced(rows.operation, rows.software, rows.hardware)
        times = price.seconds(rows.calls, warm=True)
        low, high = price.interval(times)
        assert ((low > 0) & (low < times) & (times < high) & np.isfinite(high)).all()


def test_a_row_of_an_unknown_phase_or_type_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mla_block.csv"
    path.write_text(
        BLOCKS.replace("nvfp4", "fp3").replace("l40s,another,1,x,prefill", "l40s,a,1,x,p")
    )
    cells = read_cells(path)
    kind = kind_of(cells)
    assert kind is not None
    problems = [(one.row, one.column) for one in read_operations(cells, kind).problems]
    assert problems == [(3, "gemm_type"), (5, "phase")]
