"""Laws of attention prices: what more work, more bandwidth and other kernels may change."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from moebench.predict.arrays import Floats
from moebench.predict.attention.calls import DecodeCalls, PrefillCalls
from moebench.predict.attention.decode import DecodeParameters, decode_time
from moebench.predict.attention.kernels import KERNELS, family_of, kernel
from moebench.predict.attention.prefill import PrefillParameters, prefill_time
from moebench.predict.attention.splits import parts_of
from moebench.spec.hardware import HardwareSpec, load_hardware

H100 = load_hardware("h100-sxm")
GRID = [
    (batch, length, heads, kv_heads, dim)
    for batch in (1, 3, 64, 1024)
    for length in (1, 77, 1024, 30000)
    for heads, kv_heads in ((8, 8), (8, 1), (64, 8), (96, 2))
    for dim in (64, 128, 256)
]


def decode_calls(family: str = "other", **changed: float) -> DecodeCalls:
    batch, keys, heads, kv_heads, dim = np.array(GRID, dtype=float).T
    calls = DecodeCalls(
        batch, keys, heads, kv_heads, dim, dim, 0 * dim, np.full_like(dim, 2), family
    )
    return _changed(calls, changed)


def prefill_calls(family: str = "other", **changed: float) -> PrefillCalls:
    batch, tokens, heads, kv_heads, dim = np.array(GRID, dtype=float).T
    calls = PrefillCalls(
        batch, tokens, 0 * dim, heads, kv_heads, dim, dim, 0 * dim, np.full_like(dim, 2), family
    )
    return _changed(calls, changed)


def _changed(calls: Any, changed: dict[str, float]) -> Any:
    full = {name: np.full(len(GRID), float(value)) for name, value in changed.items()}
    return dataclasses.replace(calls, **full)


def decode(calls: DecodeCalls, hardware: HardwareSpec = H100, warm: bool = False) -> Floats:
    return decode_time(DecodeParameters(), hardware, calls, warm)


def prefill(calls: PrefillCalls, hardware: HardwareSpec = H100, warm: bool = False) -> Floats:
    return prefill_time(PrefillParameters(), hardware, calls, warm)


@pytest.fixture(params=sorted(KERNELS))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_call_takes_at_least_its_start_and_its_bytes(family: str) -> None:
    calls = decode_calls(family)
    cache = 2 * calls.batch * calls.keys * calls.kv_heads * 2 * calls.head_dim
    clock = H100.clock or 0.0
    start = DecodeParameters().start / clock
    assert (decode(calls) >= start + cache / H100.memory_bandwidth).all()
    assert (prefill(prefill_calls(family)) >= PrefillParameters().start / clock).all()


def test_prefill_takes_at_least_its_products(family: str) -> None:
    calls = prefill_calls(family)
    pairs = calls.batch * calls.heads * calls.tokens**2 / 2
    least = 4 * pairs * calls.head_dim / H100.peak_for("bfloat16")
    assert (prefill(calls) >= least).all()


def test_more_bandwidth_is_never_slower(family: str) -> None:
    faster = dataclasses.replace(H100, memory_bandwidth=1.4 * H100.memory_bandwidth)
    assert (decode(decode_calls(family), faster) <= decode(decode_calls(family))).all()
    assert (prefill(prefill_calls(family), faster) <= prefill(prefill_calls(family))).all()


def test_twice_the_keys_are_never_faster(family: str) -> None:
    calls = decode_calls(family)
    more = dataclasses.replace(calls, keys=2 * calls.keys)
    assert (decode(more) >= decode(calls) * 0.97).all()  # another split may be the better one
    assert (decode(more) > decode(calls)).mean() > 0.5


def test_a_cached_prefix_costs_but_less_than_computing_it(family: str) -> None:
    alone = prefill_calls(family, tokens=1024)
    behind = dataclasses.replace(alone, prefix=np.full(len(GRID), 4096.0))
    whole = dataclasses.replace(alone, tokens=np.full(len(GRID), 5120.0))
    assert (prefill(behind) > prefill(alone)).all()
    assert (prefill(behind) < prefill(whole)).all()


def test_a_window_is_never_slower_in_prefill_and_wider_ones_never_faster(family: str) -> None:
    free = prefill(prefill_calls(family))
    narrow, wide = (prefill(prefill_calls(family, window=w)) for w in (128, 2048))
    assert (narrow <= wide * (1 + 1e-12)).all()
    assert (wide <= free * (1 + 1e-12)).all()


def test_a_window_wider_than_the_keys_changes_nothing_where_heads_still_share_them() -> None:
    calls = decode_calls("fa3-planned", window=1e6)
    assert np.array_equal(decode(calls), decode(decode_calls("fa3-planned")))


def test_an_fp8_cache_is_faster_where_reading_binds_and_at_most_twice_as_fast(family: str) -> None:
    calls = decode_calls(family, batch=64, keys=30000, heads=8, kv_heads=8)
    fp8 = dataclasses.replace(calls, kv_bytes=np.ones(len(GRID)))
    ratio = decode(fp8) / decode(calls)
    assert (ratio >= 0.5).all()
    assert (ratio < 0.8).all()


def test_narrower_values_are_cheaper(family: str) -> None:
    calls = decode_calls(family)
    narrow = dataclasses.replace(calls, value_dim=calls.value_dim / 2)
    assert (decode(narrow) < decode(calls)).all()


def test_replays_are_only_faster_and_not_where_the_cache_exceeds_l2(family: str) -> None:
    calls = decode_calls(family)
    warm, cold = decode(calls, warm=True), decode(calls)
    cache = 4 * calls.batch * calls.keys * calls.kv_heads * calls.head_dim
    assert warm[cache > 4 * H100.cache] == pytest.approx(cold[cache > 4 * H100.cache])


def test_no_part_is_empty_and_no_key_is_left_out(family: str) -> None:
    calls = decode_calls(family)
    tile = np.full(len(GRID), 128.0)
    parts = parts_of(KERNELS[family], calls, tile, H100.num_processors)
    steps = np.ceil(calls.keys / tile)
    assert (parts.count * parts.steps >= steps).all()
    assert (parts.steps >= 1).all()
    assert (parts.count >= 1).all()


def test_flash_attention_2_never_parts_keys_of_heads_that_share_none() -> None:
    calls = decode_calls("fa2", batch=1, heads=8, kv_heads=8)
    parts = parts_of(KERNELS["fa2"], calls, np.full(len(GRID), 128.0), 132)
    assert (parts.count == 1).all()


def test_flash_attention_3_of_one_sequence_uses_every_multiprocessor() -> None:
    """8 heads of one sequence with many tiles: 132 / (1.1 x 8) parts, rounded up."""
    calls = decode_calls("fa3", batch=1, keys=131072, heads=64, kv_heads=8)
    parts = parts_of(KERNELS["fa3"], calls, np.full(len(GRID), 128.0), 132)
    assert set(parts.count) == {15.0}


def test_heads_beyond_the_widest_group_read_for_themselves() -> None:
    rules, tile = KERNELS["trtllm-fused"], np.full(len(GRID), 64.0)
    shared, apart = (
        parts_of(rules, decode_calls("trtllm-fused", heads=heads, kv_heads=1), tile, 132)
        for heads in (32, 64)
    )
    assert set(shared.readings) == {1.0}
    assert set(apart.readings) == {64.0}


@pytest.mark.parametrize(
    ("framework", "source", "system", "expected"),
    [
        ("vllm", "vllm_flash_attn_fa3", "h200-sxm", "fa3-planned"),
        ("sglang", "fa3", "h200-sxm", "fa3"),
        ("vllm", "vllm_flash_attn_fa2", "l40s", "fa2"),
        ("vllm", "vllm_flash_attn", "a100-sxm-80gb", "fa2"),
        ("vllm", "vllm_flashinfer_trtllmdecode", "b300-sxm", "trtllm-gen"),
        ("trtllm", "torch_flow", "gb300", "trtllm-fused"),
        ("trtllm", "torch_flow", "h200-sxm", "xqa"),
        ("sglang", "never heard of", "h200-sxm", "other"),
        ("new engine", "", "h200-sxm", "fa3"),
    ],
)
def test_kernels_are_known_by_the_names_of_tables(
    framework: str, source: str, system: str, expected: str
) -> None:
    assert family_of(framework, source, load_hardware(system)) == expected


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(ValueError, match="fa33.*fa3"):
        kernel("fa33")
