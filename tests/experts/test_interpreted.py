"""Small cases of the training kernels and of those for packed weights, in Triton's interpreter."""

from typing import Any

import pytest
import triton_install
from experts import interpreted_packed, interpreted_quick, interpreted_training
from experts.test_quantised import TOLERANCES
from experts.test_training_kernels import check


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return triton_install.interpreted(interpreted_quick)


@pytest.mark.parametrize("name", interpreted_training.QUICK)
def test_gradients_are_those_of_the_double_sum(found: dict[str, Any], name: str) -> None:
    case = interpreted_training.QUICK[name]
    check(found["training"][name], is_single=case.dtype.itemsize == 4)


@pytest.mark.parametrize("name", interpreted_packed.QUICK)
def test_packed_weights_give_the_double_sum_of_what_they_stand_for(
    found: dict[str, Any], name: str
) -> None:
    assert found["packed"][name] < TOLERANCES[interpreted_packed.CASES[name][1].dtype]
