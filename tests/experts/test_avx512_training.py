"""Our kernels' backward passes: the gradients of `grouped`, whatever the sizes and the threads."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from layers_in_training import gradients, made

from moebench.experts.avx512 import avx512
from moebench.experts.cpu import build
from moebench.experts.cpu.scratch import free_scratch, recycled
from moebench.experts.grouped import grouped
from moebench.spec.model import ModelSpec

needs_kernel = pytest.mark.skipif(build.why_not() is not None, reason=str(build.why_not()))
FP32, BF16 = torch.float32, torch.bfloat16
ROUNDING = {FP32: 1e-5, BF16: 2.0**-6}
"""Largest errors of a gradient, of its norm: in bf16 four roundings of 2^-8, one for each of the
tensors that lie between."""


@needs_kernel
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize(
    "sizes",
    [
        (9, 18, 34, 4),  # no whole vectors, and odd numbers of rows
        (40, 64, 32, 3),  # gradients that go past the caches
        (1, 64, 128, 5),
        (600, 96, 130, 3),  # more rows than a chunk of a gradient, more steps than a vector
        (5, 1100, 20, 4),  # more inputs than a stretch in both types
        (2100, 4, 2, 3),  # more rows than a chunk of a product
    ],
    ids=str,
)
def test_gradients_are_those_of_grouped(
    tiny: ModelSpec, sizes: tuple[int, int, int, int], num_threads: int, dtype: torch.dtype
) -> None:
    x, routing, weights = made(tiny, sizes, dtype)
    direction = torch.randn(x.shape).to(dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        observed = gradients(avx512, x, routing, weights, direction)
    finally:
        torch.set_num_threads(before)
    double = deepcopy(weights).double()
    exact = replace(routing, weights=routing.weights.double())
    expected = gradients(grouped, x.double(), exact, double, direction.double())
    for one, other in zip(observed, expected, strict=True):
        assert one.dtype == dtype and one.shape == other.shape
        error = (one.double() - other).norm() / other.norm()
        assert error < ROUNDING[dtype], f"{error}"
    for one in observed[3:]:
        assert not one[-1].any()  # the last expert has no token


@needs_kernel
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_gradients_of_two_matrices_and_of_those_that_are_not_frozen(
    tiny: ModelSpec, dtype: torch.dtype
) -> None:
    x, routing, weights = made(tiny, (9, 20, 30, 4), dtype, is_gated=False)
    direction = torch.randn(x.shape).to(dtype)
    for frozen in (None, weights.gate_up, weights.down):
        for parameter in weights.parameters():
            parameter.requires_grad_(parameter is not frozen)
        observed, expected = (
            gradients(run, x, routing, weights, direction) for run in (avx512, grouped)
        )
        for one, other in zip(observed, expected, strict=True):
            assert (one - other).double().norm() < ROUNDING[dtype] * other.double().norm()


@needs_kernel
def test_a_routing_and_weights_that_do_not_belong_together_are_refused(tiny: ModelSpec) -> None:
    x, routing, weights = made(tiny, (9, 20, 30, 4), FP32)
    for changes, message in (
        ({"token_indices": routing.token_indices + 9}, "out of range"),
        ({"tokens_per_expert": routing.tokens_per_expert + 1}, "do not add up"),
        ({"tokens_per_expert": routing.tokens_per_expert[:3]}, "belong together"),
    ):
        with pytest.raises(ValueError, match=message):
            avx512(x, replace(routing, **changes), weights)
    with pytest.raises(ValueError, match="in torch.bfloat16, parameters .* in torch.float32"):
        avx512(x.bfloat16(), routing, weights)


def test_memory_of_a_gradient_that_is_gone_is_that_of_the_next() -> None:
    free_scratch()
    like = torch.empty(3, 5, dtype=BF16)
    first, second = recycled(like), recycled(like)
    assert first.shape == like.shape and first.dtype == like.dtype
    assert first.data_ptr() != second.data_ptr()
    place = first.data_ptr()
    part = first[1:]
    del first
    assert recycled(like).data_ptr() != place  # a part of it is there
    del part
    assert recycled(like).data_ptr() == place
    assert recycled(torch.empty(0, 5)).shape == (0, 5)
    free_scratch()
