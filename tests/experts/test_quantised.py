"""Packed weights: their formats by definition, and the kernels that read them."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
import triton_install
from experts import interpreted_packed

from moebench.experts import triton_fp8, triton_mxfp4
from moebench.experts.catalogue import EXPERT_BACKENDS
from moebench.experts.gpu.quantised import quantised_layer
from moebench.experts.quantised import (
    BLOCK,
    E2M1,
    GROUP_SIZE,
    PackedMatrices,
    pack_experts,
    pack_fp8,
    pack_mxfp4,
    unpack,
)
from moebench.experts.weights import Clamp, ExpertWeights
from moebench.predict.layers.memory import layers_memory
from moebench.routers.routing import Routing
from moebench.spec.case import Workload
from moebench.spec.load import ExpertLoad, fixed_k
from moebench.spec.model import ModelSpec
from moebench.spec.ops import expert_ops

TOLERANCES = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 4e-3}
"""On the norm of the error: the rounding of the hidden rows, of the outputs and of the result."""


def e4m3(code: int) -> float:
    """Sign, four bits of exponent with bias 7, three of mantissa; no infinity."""
    exponent, mantissa = code >> 3 & 15, code & 7
    size = mantissa * 2.0**-9 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return -size if code & 128 else size


def e2m1(code: int) -> float:
    """Sign, two bits of exponent with bias 1, one of mantissa."""
    exponent, mantissa = code >> 1 & 3, code & 1
    size = mantissa / 2 if exponent == 0 else (1 + mantissa / 2) * 2.0 ** (exponent - 1)
    return -size if code & 8 else size


def test_fp8_codes_are_e4m3_times_the_scale_of_their_block() -> None:
    bits = torch.tensor([code for code in range(256) if code & 127 != 127], dtype=torch.uint8)
    codes = bits.repeat(2, 2, 1).view(torch.float8_e4m3fn)  # [2, 2, 254]: two blocks a row
    scales = torch.tensor([[[0.5, 3.0]], [[2.0, 0.25]]])
    values = unpack(PackedMatrices(codes, scales))
    for matrix, row, column in itertools.product(range(2), range(2), range(254)):
        expected = e4m3(int(bits[column])) * float(scales[matrix, 0, column // BLOCK])
        assert values[matrix, row, column] == expected


def test_mxfp4_codes_are_e2m1_times_a_power_of_two_first_in_the_low_bits() -> None:
    packed = torch.arange(256, dtype=torch.uint8).view(1, 2, 128)
    exponents = torch.arange(120, 136, dtype=torch.uint8).view(1, 2, 8)
    values = unpack(PackedMatrices(packed, exponents))
    for row, column in itertools.product(range(2), range(256)):
        byte = int(packed[0, row, column // 2])
        code = byte >> 4 if column % 2 else byte & 15
        scale = 2.0 ** (int(exponents[0, row, column // GROUP_SIZE]) - 127)
        assert values[0, row, column] == e2m1(code) * scale


@pytest.mark.parametrize("pack", [pack_fp8, pack_mxfp4])
def test_what_a_format_holds_is_packed_to_the_bit(pack: Any) -> None:
    held = unpack(pack(torch.randn(2, 130, 160)))
    assert torch.equal(unpack(pack(held)), held)
    assert not unpack(pack(torch.zeros(1, 3, 32))).any()


def test_fp8_errs_by_half_a_step_of_three_bits_or_of_the_smallest_code() -> None:
    weights = torch.randn(3, 200, 300) * torch.rand(3, 200, 1) ** 8
    packed = pack_fp8(weights)
    assert packed.scales.shape == (3, 2, 3)
    scales = packed.scales.repeat_interleave(BLOCK, 1).repeat_interleave(BLOCK, 2)
    scales = scales[:, :200, :300]
    bound = torch.maximum(weights.abs() * 2.0**-4, scales * 2.0**-10)
    assert ((unpack(packed) - weights).abs() <= 1.001 * bound).all()


def test_mxfp4_takes_the_nearest_code_and_the_even_one_of_two() -> None:
    """By search: of all codes at the scale that the largest magnitude gives, the nearest one."""
    weights = torch.randn(1, 40, 64) * torch.rand(1, 40, 1) ** 4
    weights[0, 0, :4] = torch.tensor([4.0, 0.25, -2.5, 5.0])  # ties at a scale of 1
    weights[0, 0, 4:32] = 0.0
    largest = weights.view(40, 2, GROUP_SIZE).abs().amax(2)
    scales = 2.0 ** (largest.log2().floor() - 2)
    table = torch.tensor([*E2M1, *(-one for one in E2M1)])
    values = (weights.view(40, 2, GROUP_SIZE, 1) / scales[..., None, None] - table).abs()
    nearest = values.amin(3) * scales[..., None]
    found = unpack(pack_mxfp4(weights))
    errors = (found - weights).abs().view(40, 2, GROUP_SIZE)
    torch.testing.assert_close(errors, nearest, rtol=0, atol=1e-6)
    assert found[0, 0, :4].tolist() == [4.0, 0.0, -2.0, 4.0]
    assert (
        errors <= 2.0**-2 * torch.maximum(weights.abs().view_as(errors), scales[..., None])
    ).all()


def test_rows_that_do_not_fill_their_scales_are_refused_in_mxfp4() -> None:
    with pytest.raises(ValueError, match="rows of 48 weights, expected a multiple of 32"):
        pack_mxfp4(torch.zeros(1, 2, 48))


@pytest.fixture
def square(tiny: ModelSpec) -> ModelSpec:
    """Four experts of whole blocks."""
    return replace(tiny, hidden_size=BLOCK, intermediate_size=2 * BLOCK)


@pytest.mark.parametrize("format", ["fp8", "mxfp4"])
def test_the_priced_bytes_are_those_of_the_copy(format: Any, square: ModelSpec) -> None:
    weights = ExpertWeights(square, torch.bfloat16)
    for parameter in weights.parameters():
        torch.nn.init.normal_(parameter)
    packed = weights.cached_layout("packed", lambda w: pack_experts(w, format))
    held = sum(part.nbytes for stack in packed for part in stack)
    assert weights.layout_bytes == held
    backend, load = EXPERT_BACKENDS[f"triton-{format}"], ExpertLoad.expected(1, 4, fixed_k(2))
    ops, plain = (
        expert_ops(square, load, "bfloat16", EXPERT_BACKENDS[name])
        for name in (backend.name, "triton")
    )
    all_parameters = sum(parameter.numel() for parameter in weights.parameters())
    saved = sum(op.bytes_read for op in plain) - sum(op.bytes_read for op in ops)
    assert saved == pytest.approx((2 * all_parameters - held) / 2, rel=1e-3)  # two of four touched
    assert [op.flops for op in ops] == [op.flops for op in plain]
    workload = Workload("decode", "moe", 1)
    memory = [
        layers_memory(
            square, workload, (load,), 0.0, EXPERT_BACKENDS[name].copied_bytes("bfloat16")
        )
        for name in (backend.name, "triton")
    ]
    assert memory[0] - memory[1] == pytest.approx(held, rel=1e-3)


def test_a_layer_without_assignments_needs_no_kernel(square: ModelSpec) -> None:
    keep = torch.zeros(3, 2, dtype=torch.bool)
    routing = Routing.from_slots(torch.rand(3, 2), torch.zeros(3, 2, dtype=torch.long), 4, keep)
    weights = ExpertWeights(square, torch.float32)
    packed = pack_experts(weights, "fp8")
    assert not quantised_layer(torch.randn(3, BLOCK), routing, packed, weights).any()
    weights.clamp = Clamp(is_interleaved=True)
    with pytest.raises(ValueError, match="found gate and up in turns, expected gate above up"):
        quantised_layer(torch.randn(3, BLOCK), routing, packed, weights)


def test_the_interpreter_is_no_processor_for_4_bit_operands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    cpu = torch.device("cpu")
    assert triton_fp8.missing(cpu) is None
    assert "no products of scaled 4-bit operands" in str(triton_mxfp4.missing(cpu))


@pytest.fixture(scope="module")
def found() -> dict[str, float]:
    """Errors of all cases in the interpreter."""
    return triton_install.interpreted(interpreted_packed)


@pytest.mark.slow
@pytest.mark.parametrize("name", interpreted_packed.CASES)
def test_the_kernels_give_the_double_sum_of_what_the_codes_stand_for(
    found: dict[str, float], name: str
) -> None:
    assert found[name] < TOLERANCES[interpreted_packed.CASES[name][1].dtype]
