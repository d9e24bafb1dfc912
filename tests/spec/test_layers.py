"""Layers of several kinds: windows against a count of pairs, value widths, dense residuals."""

from dataclasses import replace

import pytest

from moebench.experts.catalogue import EXPERT_BACKENDS
from moebench.spec.case import Workload
from moebench.spec.layer import (
    attended_tokens,
    attention_ops,
    cache_elements_per_token,
    cached_tokens,
    layer_ops,
)
from moebench.spec.load import ExpertLoad, fixed_k
from moebench.spec.model import ModelSpec
from moebench.spec.ops import expert_ops, shared_expert_ops, total_flops
from moebench.spec.weight_types import stored_bytes

GROUPED = EXPERT_BACKENDS["grouped"]


@pytest.mark.parametrize("window", [0, 1, 3, 8, 100])
@pytest.mark.parametrize(("context", "new"), [(0, 1), (0, 9), (5, 1), (5, 4), (2, 7)])
def test_a_window_is_what_counting_the_pairs_gives(context: int, new: int, window: int) -> None:
    """Position p sees positions p - window + 1 to p; what any of the new ones sees is read."""
    seen = [
        set(range(max(0, p - window + 1) if window else 0, p + 1))
        for p in range(context, context + new)
    ]
    work = Workload("prefill", "decoder", 3, new, context)
    assert attended_tokens(work, window) == pytest.approx(sum(map(len, seen)) / new)
    assert cached_tokens(work, window) == len(set().union(*seen))


def test_values_may_be_narrower_than_keys(tiny: ModelSpec) -> None:
    """Two key heads of 8 and value heads of 4: 24 cached elements; outputs are 4 x 4 wide."""
    narrow = replace(tiny, attention=replace(tiny.attention, value_head_dim=4))
    assert cache_elements_per_token(narrow.attention) == 2 * (8 + 4)
    ops = {op.name: op for op in attention_ops(narrow, Workload("decode", "decoder", 1, 1, 6))}
    assert (ops["attention-value"].n, ops["attention-output"].k) == (2 * 4, 4 * 4)
    assert ops["attention-scores"].flops == 2 * 7 * 4 * (8 + 4)


def test_an_fp8_cache_is_read_in_half_the_bytes(tiny: ModelSpec) -> None:
    work = Workload("decode", "decoder", 1, 1, 99)
    (full,), (half,) = (
        [op for op in attention_ops(tiny, work, 0, dtype) if op.name == "attention-scores"]
        for dtype in ("bfloat16", "float8")
    )
    assert full.bytes_read - half.bytes_read == 100 * 32
    assert stored_bytes("float8") == 1.0


def test_a_dense_residual_runs_for_every_token(tiny: ModelSpec) -> None:
    both = replace(tiny, shared_intermediate_size=10, residual_intermediate_size=6)
    more = total_flops(shared_expert_ops(both, 5, "float32"))
    assert more == 2 * 5 * 3 * 32 * (10 + 6)
    load = ExpertLoad.expected(5, 4, fixed_k(2))
    layer = layer_ops(both, Workload("prefill", "moe", 1, 5), (), load, GROUPED)
    assert total_flops(layer) == more + total_flops(expert_ops(both, load, "bfloat16", GROUPED))


def test_four_norms_a_layer_move_twice_as_much(tiny: ModelSpec) -> None:
    load = ExpertLoad.expected(1, 4, fixed_k(2))
    counts = [
        sum(op.name == "rms-norm" for op in layer_ops(model, work, (), load, GROUPED))
        for model in (tiny, replace(tiny, norms_per_layer=4))
        for work in (Workload("decode", "moe", 1), Workload("decode", "decoder", 1))
    ]
    assert counts == [1, 2, 1, 4]
