"""Counts of whole numbers on a device, which the host never waits for."""

import torch
from jaxtyping import Int
from torch import Tensor


def counts(values: Int[Tensor, " values"], number: int) -> Int[Tensor, " number"]:
    """How often each of the numbers from 0 on is among the values, without waiting for a GPU."""
    if values.device.type == "cpu":
        return torch.bincount(values, minlength=number)
    # On a GPU `bincount` asks twice, for the least and for the largest value.
    return values.new_zeros(number).index_add(0, values, torch.ones_like(values))
