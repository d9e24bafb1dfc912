"""AdamW whose whole state is named tensors, so that it is saved and restored with the weights."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Schedule:
    """Learning rate over the steps of a training: a linear rise, then a cosine fall, or constant.

    **Source** of the cosine: Loshchilov and Hutter (1608.03983), equation 5.
    """

    peak: float
    warmup_steps: int = 0
    num_steps: int = 0
    """Steps of the whole training; 0: the rate stays at its peak."""
    final_share: float = 0.1
    """Share of the peak at the last step."""

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        if not self.num_steps:
            return self.peak
        done = (step - self.warmup_steps) / max(1, self.num_steps - self.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return self.peak * (self.final_share + (1 - self.final_share) * cosine)


class Optimiser:
    """AdamW (Loshchilov and Hutter, 1711.05101) over named parameters.

    Weight decay holds for matrices; norms, biases and other vectors have none. Of parameters in 16
    bits a copy in fp32 is updated, and rounded into them: a small step would be lost in rounding.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        schedule: Schedule,
        weight_decay: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.95),
    ) -> None:
        self.parameters, self.schedule = dict(parameters), schedule
        self._updated = {
            name: p if p.dtype.itemsize > 2 else nn.Parameter(p.detach().float())
            for name, p in self.parameters.items()
        }
        matrices = [p for p in self._updated.values() if p.dim() > 1]
        vectors = [p for p in self._updated.values() if p.dim() <= 1]
        groups = [
            {"params": matrices, "weight_decay": weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self._adam = torch.optim.AdamW(
            [group for group in groups if group["params"]], schedule.peak, betas, fused=True
        )
        for parameter in self._updated.values():
            self._adam.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    def step(self, step: int, largest_norm: float | None = 1.0) -> float:
        """Update the parameters from their gradients, which are then cleared; the gradient's norm.

        Args:
            largest_norm: Gradients of a larger norm are scaled down to it; None: never.
        """
        copies = [(p, self._updated[name]) for name, p in self.parameters.items()]
        copies = [(parameter, copy) for parameter, copy in copies if copy is not parameter]
        for parameter, copy in copies:
            copy.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
        limit = math.inf if largest_norm is None else largest_norm
        norm = nn.utils.clip_grad_norm_(self._updated.values(), limit)
        for group in self._adam.param_groups:
            group["lr"] = self.schedule.rate(step)
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        with torch.no_grad():
            for parameter, copy in copies:
                parameter.copy_(copy)
        return float(norm)

    def tensors(self) -> dict[str, Tensor]:
        """Every parameter's step count and moments, and its copy in fp32, by name."""
        state = {
            f"adam.{part}.{name}": self._adam.state[parameter][part]
            for name, parameter in self._updated.items()
            for part in ("step", "exp_avg", "exp_avg_sq")
        }
        copies = {n: p for n, p in self._updated.items() if p is not self.parameters[n]}
        return state | {f"adam.fp32.{name}": copy for name, copy in copies.items()}
