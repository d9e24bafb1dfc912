"""Our kernels for processors: sums in fp32 of every size, whatever the blocks and the threads."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from moebench.experts.cpu import build
from moebench.experts.cpu import library as avx512
from moebench.experts.cpu.library import BLOCK, Epilogue, blocks, combine, experts, ragged_linear
from moebench.routers.routing import Routing

needs_kernel = pytest.mark.skipif(avx512.why_not() is not None, reason=str(avx512.why_not()))
FP32 = torch.float32
ROUNDING = {FP32: 3e-6, torch.bfloat16: 2.0**-8}
"""Largest errors: twice the square root of 512 additions that each round a sum of up to 2 by half a
unit of 2^-23, up or down; in bf16, that of a result that is rounded once."""


def outcome(sums: Tensor, epilogue: Epilogue) -> Tensor:
    if epilogue == "none":
        return sums
    if epilogue == "squared-relu":
        return functional.relu(sums).square()
    gate, up = sums.chunk(2, dim=-1)
    return functional.silu(gate) * up


@needs_kernel
@pytest.mark.parametrize("dtype", list(avx512.DTYPES), ids=str)
@pytest.mark.parametrize("epilogue", avx512.EPILOGUES)
@pytest.mark.parametrize("num_threads", [1, 2, 5])
@pytest.mark.parametrize(
    ("counts", "inputs", "outputs"),
    [
        ([1, 0, 2, 6, 7], 32, 64),
        ([0, 11, 0], 18, 40),  # neither whole vectors nor whole blocks
        ([3, 250, 1], 16, 136),  # more rows than share a block at a time
        ([2, 8], 1030, 100),  # more inputs than a stretch in bf16
        ([2, 8], 515 * 2, 2),
    ],
    ids=str,
)
def test_each_row_meets_the_matrix_of_its_expert(
    counts: list[int],
    inputs: int,
    outputs: int,
    num_threads: int,
    epilogue: Epilogue,
    dtype: torch.dtype,
) -> None:
    width = 2 * outputs if epilogue == "swiglu" else outputs
    matrices = (torch.randn(len(counts), width, inputs) / math.sqrt(inputs)).to(dtype)
    x = torch.randn(9, inputs + 2).to(dtype)[:, :inputs]  # rows that lie apart
    indices = torch.randint(9, (sum(counts),))
    y = torch.full((sum(counts), outputs), math.nan, dtype=dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        packed = blocks(matrices, is_gated=epilogue == "swiglu")
        ragged_linear(x, indices, torch.tensor(counts), packed, y, epilogue)
    finally:
        torch.set_num_threads(before)
    experts = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    sums = torch.einsum("ai,aoi->ao", x[indices].double(), matrices[experts].double())
    # A product of two sums up to 3 has the errors of both, each times the other.
    rounding = ROUNDING[dtype] if epilogue == "none" else max(ROUNDING[dtype], 6 * ROUNDING[FP32])
    torch.testing.assert_close(y.double(), outcome(sums, epilogue), rtol=rounding, atol=rounding)


@needs_kernel
@pytest.mark.parametrize("gate", [-1e4, -90.0, -20.0, 0.0, 20.0, 90.0, 1e4, math.inf, math.nan])
def test_silu_is_right_where_its_exponential_is_not(gate: float) -> None:
    matrices = torch.tensor([[[gate], [1.0]]])
    y = torch.empty(1, 1)
    packed = blocks(matrices, is_gated=True)
    ragged_linear(torch.ones(1, 1), None, torch.tensor([1]), packed, y, "swiglu")
    expected = functional.silu(torch.tensor([[gate]]))
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-30, equal_nan=True)


@needs_kernel
@pytest.mark.parametrize("dtype", list(avx512.DTYPES), ids=str)
def test_no_expert_has_rows(dtype: torch.dtype) -> None:
    y = torch.empty(0, 8, dtype=dtype)
    matrices = blocks(torch.randn(2, 8, 4).to(dtype))
    ragged_linear(torch.empty(0, 4, dtype=dtype), None, torch.tensor([0, 0]), matrices, y)


@needs_kernel
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(4, 10)}, r"expected matrices \[2, 1, 10, 64, 1\]"),
        ({"y": torch.zeros(3, 40)}, r"found x \[4, 8\], 4 rows for y \[3, 40\]"),
        ({"y": torch.zeros(4, 70)}, r"expected matrices \[2, 2, 8, 64, 1\]"),
        ({"counts": torch.tensor([1, 3], dtype=torch.int32)}, "int64"),
        ({"indices": torch.zeros(4, dtype=torch.int32)}, "int64"),
        ({"y": torch.zeros(4, 40).bfloat16()}, "of one type"),
        ({"y": torch.zeros(40, 4).t()}, "dense"),
        ({"x": torch.zeros(8, 4).t()}, "dense"),
        ({"epilogue": "swiglu"}, r"expected matrices \[2, 2, "),
    ],
)
def test_what_does_not_belong_together_is_refused(changes: dict[str, Any], message: str) -> None:
    whole: dict[str, Any] = {
        "x": torch.zeros(4, 8),
        "indices": None,
        "counts": torch.tensor([1, 3]),
        "matrices": blocks(torch.zeros(2, 40, 8)),
        "y": torch.zeros(4, 40),
    }
    ragged_linear(**whole)
    with pytest.raises(ValueError, match=message):
        ragged_linear(**whole | changes)


@needs_kernel
@pytest.mark.parametrize(
    "changes",
    [
        {"counts": torch.tensor([1, 2])},
        {"counts": torch.tensor([2, 3])},
        {"counts": torch.tensor([-1, 5])},
        {"indices": torch.tensor([0, 1, 2, 3])},
        {"indices": torch.tensor([0, 1, -1, 2])},
    ],
    ids=str,
)
def test_counts_and_indices_that_are_wrong_are_refused_before_anything_is_read(
    changes: dict[str, Any],
) -> None:
    whole: dict[str, Any] = {
        "x": torch.zeros(3, 8),
        "indices": torch.tensor([0, 1, 2, 2]),
        "counts": torch.tensor([1, 3]),
        "matrices": blocks(torch.zeros(2, 40, 8)),
        "y": torch.zeros(4, 40),
    }
    ragged_linear(**whole)
    with pytest.raises(ValueError, match="do not add up to the rows, or an index is out of range"):
        ragged_linear(**whole | changes)


@needs_kernel
@pytest.mark.parametrize("dtype", list(avx512.DTYPES), ids=str)
@pytest.mark.parametrize("num_threads", [1, 5])
@pytest.mark.parametrize(("num_tokens", "width"), [(1, 64), (7, 41), (3, 8)])
def test_the_rows_of_a_token_are_weighted_and_added_up(
    num_tokens: int, width: int, num_threads: int, dtype: torch.dtype
) -> None:
    rows, weights = torch.randn(9, width).to(dtype), torch.rand(9)
    tokens = torch.randint(num_tokens, (9,))
    y = torch.full((num_tokens + 2, width), math.nan, dtype=dtype)  # the last two have no row
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        combine(rows, tokens, weights, y)
    finally:
        torch.set_num_threads(before)
    expected = torch.zeros(y.shape, dtype=torch.float64)
    for row, token, weight in zip(rows.double(), tokens.tolist(), weights.tolist(), strict=True):
        expected[token] += weight * row
    torch.testing.assert_close(y.double(), expected, rtol=ROUNDING[dtype], atol=ROUNDING[FP32])


@needs_kernel
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": torch.tensor([0, 1, 2])}, "index is out of range"),
        ({"tokens": torch.tensor([0, -1, 1])}, "index is out of range"),
        ({"tokens": torch.zeros(3, dtype=torch.int32)}, "int64"),
        ({"weights": torch.zeros(3).double()}, "torch.float64, expected fp32"),
        ({"rows": torch.zeros(8, 3).t()}, "dense"),
        ({"y": torch.zeros(2, 8).bfloat16()}, "one type"),
    ],
)
def test_rows_and_tokens_that_do_not_belong_together_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    whole = {
        "rows": torch.zeros(3, 8),
        "tokens": torch.tensor([0, 1, 1]),
        "weights": torch.zeros(3),
        "y": torch.zeros(2, 8),
    }
    combine(**whole)
    with pytest.raises(ValueError, match=message):
        combine(**whole | changes)


@needs_kernel
@pytest.mark.parametrize("dtype", list(avx512.DTYPES), ids=str)
@pytest.mark.parametrize("is_sorted", [True, False], ids=["assignments", "slots"])
@pytest.mark.parametrize(("num_tokens", "num_threads"), [(1, 1), (9, 1), (9, 5)])
def test_slots_are_sorted_and_empty_ones_left_out(
    num_tokens: int, num_threads: int, is_sorted: bool, dtype: torch.dtype
) -> None:
    """A layer of 5 experts, 3 of them per token at most; expert 5 stands for an empty slot."""
    first, second = (torch.randn(5, *size).div(4).to(dtype) for size in ((72, 18), (18, 36)))
    x = torch.randn(num_tokens, 20).to(dtype)[:, :18]
    chosen = torch.stack([torch.randperm(6)[:3] for _ in range(num_tokens)])
    chosen[0] = torch.tensor([5, 2, 5])
    weights = torch.rand(num_tokens, 3)
    expected = torch.zeros(num_tokens, 18, dtype=torch.float64)
    for token, own in enumerate(chosen.tolist()):
        for slot, expert in enumerate(own):
            if expert < 5:
                hidden = first[expert].double() @ x[token].double()
                inner = outcome(hidden[None], "swiglu").to(dtype).double()
                out = (second[expert].double() @ inner[0]).to(dtype).double()
                expected[token] += weights[token, slot] * out
    given: tuple[Tensor, Tensor | None, Tensor] = (chosen, None, weights)
    if is_sorted:
        routing = Routing.from_slots(weights, chosen, 5, chosen < 5)
        given = (routing.tokens_per_expert, routing.token_indices, routing.weights)
    y = torch.full((num_tokens, 18), math.nan, dtype=dtype)
    scratch = (torch.empty(30, 36, dtype=dtype), torch.empty(30, 18, dtype=dtype))
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        packed = blocks(first, is_gated=True), blocks(second)
        experts(x, given, packed, scratch, y, "swiglu")
    finally:
        torch.set_num_threads(before)
    # Inner results may round the other way: half a unit each, of 36 that are added up.
    rounding = 12 * ROUNDING[dtype]
    torch.testing.assert_close(y.double(), expected, rtol=rounding, atol=rounding)


@needs_kernel
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slots": torch.tensor([[0, 3], [1, 1]])}, "index is out of range"),
        ({"slots": torch.tensor([[0, 1], [-1, 1]])}, "index is out of range"),
        ({"slots": torch.tensor([0, 1, 1])}, "and 4 weights"),
        ({"weights": torch.rand(3)}, "and 3 weights"),
        ({"weights": torch.rand(2, 2).double()}, "torch.float64, expected fp32"),
        ({"tokens": torch.tensor([0, 1, 0, 1])}, "and 4 weights"),
        ({"slots": torch.tensor([2, 2]), "tokens": torch.tensor([0, 1, 0, 2])}, "out of range"),
        ({"slots": torch.tensor([2, 3]), "tokens": torch.tensor([0, 1, 0, 1])}, "do not add up"),
        ({"rows": 3}, "found x"),
        ({"x": torch.zeros(2, 10), "y": torch.zeros(2, 10)}, "found x"),
        ({"slots": torch.zeros(2, 2, dtype=torch.int32)}, "int64"),
    ],
)
def test_a_layer_whose_parts_do_not_belong_together_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    def layer(**given: Any) -> None:
        assigned = given["slots"], given["tokens"], given["weights"]
        matrices = blocks(torch.zeros(2, 32, 8), is_gated=True), blocks(torch.zeros(2, 8, 16))
        scratch = torch.zeros(given["rows"], 16), torch.zeros(given["rows"], 8)
        experts(given["x"], assigned, matrices, scratch, given["y"], "swiglu")

    whole: dict[str, Any] = {
        "x": torch.zeros(2, 8),
        "slots": torch.tensor([[0, 2], [1, 1]]),
        "tokens": None,
        "weights": torch.rand(2, 2),
        "rows": 4,
        "y": torch.zeros(2, 8),
    }
    layer(**whole)
    with pytest.raises(ValueError, match=message):
        layer(**whole | changes)


def test_blocks_hold_every_weight_once_and_zeros() -> None:
    matrices = torch.arange(1.0, 2 * 70 * 6 + 1).view(2, 70, 6)
    packed = blocks(matrices)
    assert packed.shape == (2, 2, 6, BLOCK, 1)
    found = packed.permute(0, 1, 3, 2, 4).reshape(2, 2 * BLOCK, 6)
    assert torch.equal(found[:, :70], matrices)
    assert not found[:, 70:].any()
    gated = blocks(matrices, is_gated=True).permute(0, 1, 3, 2, 4).reshape(2, 2, 2, BLOCK // 2, 6)
    assert torch.equal(gated[:, 0, 0], matrices[:, : BLOCK // 2])
    assert torch.equal(gated[:, 0, 1], matrices[:, 35 : 35 + BLOCK // 2])


@pytest.fixture
def fresh_processor(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A processor that the kernel is for, with nothing compiled or asked before."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(build, "library", build.library.__wrapped__)
    return monkeypatch


def test_without_a_compiler_the_reason_names_it(fresh_processor: pytest.MonkeyPatch) -> None:
    fresh_processor.setenv("CXX", "no-such-compiler")
    assert build.why_not.__wrapped__() == (
        "there is no C++ compiler 'no-such-compiler' (the variable CXX names another)"
    )


def test_a_compiler_that_fails_is_quoted(
    fresh_processor: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    compiler = tmp_path_factory.mktemp("bin") / "c++"
    compiler.write_text("#!/bin/sh\necho 'unrecognized option -mavx512bf16' >&2\nexit 1\n")
    compiler.chmod(0o755)
    fresh_processor.setenv("CXX", str(compiler))
    expected = f"{compiler} did not compile avx512.cpp: unrecognized option -mavx512bf16"
    assert build.why_not.__wrapped__() == expected


def test_it_is_for_processors_with_its_instructions(
    fresh_processor: pytest.MonkeyPatch,
) -> None:
    fresh_processor.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert build.why_not.__wrapped__() == "this processor has no AVX-512-BF16"
