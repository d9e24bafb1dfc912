"""Auxiliary losses of training, and how a stack of layers adds them up.

Every one here is a sum over columns i of factor_i P_i, where P_i is the mean over a layer's tokens
of a probability, which has the gradient. Released codes reduce it over layers in three ways; the
coefficients they name differ by that, by a factor of as many as there are layers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from moebench.routers.policy import Reduction


class AuxiliaryLoss(NamedTuple):
    """One layer's part of an auxiliary loss, with its coefficient in the factors."""

    factors: Float[Tensor, " choices"]
    probabilities: Float[Tensor, " choices"]
    """P, means over the tokens of this layer."""
    reduction: Reduction
    """See `Reduction`."""


def auxiliary_loss(layers: Sequence[AuxiliaryLoss]) -> Float[Tensor, ""]:
    """The auxiliary loss of a stack, by the reduction that its layers name; not for none."""
    reduction = layers[0].reduction
    if reduction == "pooled":
        factors = torch.stack([layer.factors for layer in layers]).mean(0)
        return factors @ torch.stack([layer.probabilities for layer in layers]).mean(0)
    total = torch.stack([layer.factors @ layer.probabilities for layer in layers]).sum()
    return total / len(layers) if reduction == "mean" else total
