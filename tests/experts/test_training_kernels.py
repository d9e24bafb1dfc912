"""The Triton kernels of training without a GPU: gradients in the interpreter, code by compiling."""

import json
import subprocess
import sys
from typing import Any

import pytest
import triton_install
from experts import interpreted_training

SINGLE = 1e-5
"""Largest relative error in fp32, on the norm."""
NARROW = 1.15
"""Largest error in fp16 and bf16, in those of `grouped`, which rounds as often."""


def check(errors: dict[str, tuple[float, float]], is_single: bool) -> None:
    """Output and all gradients against float64."""
    assert set(errors) == {*interpreted_training.PARTS}
    for part, (ours, of_grouped) in errors.items():
        assert ours <= (SINGLE if is_single else NARROW * of_grouped), part


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """Results of all cases in the interpreter."""
    return triton_install.interpreted(interpreted_training)


@pytest.mark.slow
@pytest.mark.parametrize("name", interpreted_training.CASES)
def test_gradients_are_those_of_the_double_sum(found: dict[str, Any], name: str) -> None:
    check(found["errors"][name], interpreted_training.CASES[name].dtype.itemsize == 4)


@pytest.mark.slow
def test_an_input_alone_gets_the_gradient_that_it_has_beside_the_others(
    found: dict[str, Any],
) -> None:
    assert found["frozen"] == dict.fromkeys(interpreted_training.PARTS[1:], True)


@pytest.mark.slow
def test_the_counter_sees_the_flops_of_a_training_step(found: dict[str, Any]) -> None:
    assert found["flops"]["triton"] == found["flops"]["grouped"] > 0


PROGRAM = r"""
import json, re, sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from moebench.experts.gpu.training_variants import training_variants

def atomics(one):
    types = dict(one.signature) | dict.fromkeys(one.constants, "constexpr")
    signature = {name: types[name] for name in one.function.arg_names}
    source = ASTSource(one.function, signature, dict(one.constants), {})
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
    return re.findall(r"\b(?:atom|red)\.\S+", ptx)

first = {one.function.__name__: one for one in training_variants(90)}
json.dump({name: atomics(one) for name, one in first.items()}, sys.stdout)
"""


@pytest.mark.slow
def test_no_sum_depends_on_the_order_of_the_programs() -> None:
    """There is no atomic instruction: every sum is one program's, in one order."""
    environment = {**triton_install.environment(), "TRITON_INTERPRET": "0"}
    program = [sys.executable, "-W", "ignore", "-c", PROGRAM]
    done = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kernels = ("up_and_keep", "activation_backward", "rows_backward", "matrices_backward")
    assert json.loads(done.stdout) == dict.fromkeys(kernels, [])
