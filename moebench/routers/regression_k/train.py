"""The fit of regression-k: ridge regression of measured costs on a router's input, as a stream.

Sums over tokens are all that the fit needs, so batches are added up and forgotten. Every
`HELD_OUT`-th batch goes into sums of its own, which choose the penalty of each layer and give R^2
on tokens that the fit has not seen. The weights are then fitted to all tokens.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

Inputs = Float[Tensor, "tokens hidden"]
Costs = Float[Tensor, "tokens targets"]
HELD_OUT = 5
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Penalties on the squared weights, relative to the mean variance of an input feature."""


class Fit(NamedTuple):
    """A linear map with an intercept, and how well it predicts tokens that it was not fitted to."""

    weight: Float[Tensor, "targets hidden"]
    bias: Float[Tensor, " targets"]
    r_squared: Float[Tensor, " targets"]
    """Held out: 1 - squared error over that of the fitted tokens' mean; below 0 it is worse. The
    penalty was chosen by it, out of six."""
    penalty: float


class Sums:
    """Sums of one layer over tokens, in fp64: inputs and a one by themselves, and by the costs."""

    def __init__(self, hidden: int, targets: int) -> None:
        self.gram = torch.zeros(hidden + 1, hidden + 1, dtype=torch.float64)
        self.cross = torch.zeros(hidden + 1, targets, dtype=torch.float64)
        self.square = torch.zeros(targets, dtype=torch.float64)

    def add(self, x: Inputs, costs: Costs) -> None:
        """Add a batch of tokens."""
        rows, y = torch.cat((x, torch.ones_like(x[:, :1])), 1).double().cpu(), costs.double().cpu()
        self.gram += rows.T @ rows
        self.cross += rows.T @ y
        self.square += y.square().sum(0)

    def __add__(self, other: "Sums") -> "Sums":
        total = Sums(len(self.gram) - 1, len(self.square))
        for name, tensor in total.tensors().items():
            tensor.copy_(self.tensors()[name] + other.tensors()[name])
        return total

    def tensors(self) -> Mapping[str, Tensor]:
        """The sums by name, to be saved and restored."""
        return {"gram": self.gram, "cross": self.cross, "square": self.square}

    @property
    def count(self) -> float:
        """Tokens added up."""
        return float(self.gram[-1, -1])

    def squared_error(
        self, coefficients: Float[Tensor, "inputs targets"]
    ) -> Float[Tensor, " targets"]:
        """Summed squared error of a linear map, whose last row is the intercept, on the tokens."""
        quadratic = (coefficients * (self.gram @ coefficients)).sum(0)
        return self.square - 2 * (coefficients * self.cross).sum(0) + quadratic

    def ridge(self, penalty: float) -> Float[Tensor, "inputs targets"]:
        """Coefficients with the least squared error and penalty; the intercept has none."""
        mean_x, mean_y = self.gram[:-1, -1] / self.count, self.cross[-1] / self.count
        covariance = self.gram[:-1, :-1] / self.count - mean_x.outer(mean_x)
        joint = self.cross[:-1] / self.count - mean_x.outer(mean_y)
        size = len(covariance)
        ridge = penalty * covariance.trace() / size * torch.eye(size, dtype=torch.float64)
        weight = torch.linalg.solve(covariance + ridge, joint)
        return torch.cat((weight, (mean_y - mean_x @ weight)[None]))


def fit(fitted: Sums, held_out: Sums) -> Fit:
    """The fit of one layer; a ValueError where either part has no more than two tokens."""
    if min(fitted.count, held_out.count) <= 2:
        raise ValueError(
            f"regression-k: found {fitted.count:.0f} tokens to fit and {held_out.count:.0f} held "
            f"out, expected more: at least {HELD_OUT} batches"
        )
    guess = torch.zeros_like(fitted.cross)
    guess[-1] = fitted.cross[-1] / fitted.count
    of_mean = held_out.squared_error(guess)
    scored = []
    for penalty in PENALTIES:
        error = held_out.squared_error(fitted.ridge(penalty))
        scored.append((1 - error / of_mean.clamp(min=1e-300), penalty))
    r_squared, penalty = max(scored, key=lambda pair: float(pair[0].mean()))
    coefficients = (fitted + held_out).ridge(penalty)
    return Fit(coefficients[:-1].T, coefficients[-1], r_squared, penalty)
