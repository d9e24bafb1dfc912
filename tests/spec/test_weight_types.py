"""Bits of stored weights, scales included, as the formats define them."""

import pytest

from moebench.spec.weight_types import weight_type


@pytest.mark.parametrize(
    ("name", "bits"),
    [("bf16", 16), ("mxfp4", 4.25), ("nvfp4", 4.5), ("AWQ", 4 + 20 / 128), ("fp8", 8 + 32 / 2**14)],
)
def test_bits_of_an_element_with_its_scale(name: str, bits: float) -> None:
    assert weight_type(name).bytes_per_element * 8 == bits


def test_an_unknown_type_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"expert_weights: found 'mxfp5'.*mxfp4"):
        weight_type("mxfp5", "expert_weights")
