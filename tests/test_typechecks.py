"""What the package's annotations say is checked while tests run, with torch and without."""

from collections.abc import Callable

import jaxtyping
import pytest
import torch
from beartype.roar import BeartypeCallHintViolation

from moebench import units
from moebench.experts.weights import activation
from moebench.spec import ops
from moebench.spec.model import Gate

AXES = jaxtyping.TypeCheckError


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (lambda: units.printable(3), BeartypeCallHintViolation),
        (lambda: Gate(score="softmax", renormalise="yes"), BeartypeCallHintViolation),
        (lambda: ops.Op("up", "experts", 1.0, "many", 1.0, "bfloat16"), BeartypeCallHintViolation),
        (lambda: activation([1.0], 1), AXES),
        (lambda: activation(torch.zeros(3), 3), AXES),
    ],
)
def test_what_is_not_as_annotated_is_refused(
    wrong: Callable[[], object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        wrong()
