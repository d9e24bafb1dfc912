"""Expert executions by name: a row of the catalogue, and the code in the module that it names.

Such a module defines the execution under the backend's name, with underscores for hyphens, as a
function `(x, routing, weights) -> y`, with a last argument `residual` where the row says so. It may
define as well

- `missing(device)`: why it does not run on a device, in a few words, or None;
- `takes_dtype(dtype)`: whether the processor has what a type of its row needs;
- `build_layout(weights)`: make the copy of the weights that its first call would make;
- `free_scratch()`: free the memory that it keeps from call to call.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from moebench.experts.catalogue import EXPERT_BACKENDS
from moebench.experts.weights import AddingExperts, Experts, ExpertWeights, Residual
from moebench.routers.routing import Routing
from moebench.spec.model import ModelSpec
from moebench.units import nearest


def load_backend(name: str, device: torch.device | str = "cpu") -> Experts:
    """The expert execution of that name; an error where there is none, or it does not run here."""
    if name not in EXPERT_BACKENDS:
        raise ValueError(f"unknown expert backend {name!r}{nearest(name, EXPERT_BACKENDS)}")
    if (why := why_not(name, torch.device(device))) is not None:
        raise ValueError(f"expert backend {name!r} does not run here: {why}")
    return execution(name)


@functools.cache
def execution(name: str) -> Experts:
    """The function of a backend, whether or not it runs here; the same one at every call.

    It refuses experts with biases or a clamped activation if they are beyond it.
    """
    experts: Callable[..., Tensor] = _part(name, name.replace("-", "_"))
    row = EXPERT_BACKENDS[name]

    def plain_experts(
        x: Tensor, routing: Routing, weights: ExpertWeights, *residual: Residual | None
    ) -> Tensor:
        check_takes(name, weights)
        return experts(x, routing, weights, *residual)

    if row.takes_residual:
        return AddingExperts(experts if row.takes_biases else plain_experts)
    return experts if row.takes_biases else plain_experts


def check_takes(name: str, weights: ExpertWeights) -> None:
    """Refuse experts with biases or a clamped activation where a backend would leave them out."""
    if not weights.is_plain and not EXPERT_BACKENDS[name].takes_biases:
        others = ", ".join(row.name for row in EXPERT_BACKENDS.values() if row.takes_biases)
        raise ValueError(
            f"expert backend {name!r}: found experts with biases or a clamped activation, which "
            f"only these take: {others}"
        )


def why_not(name: str, device: torch.device, dtype: torch.dtype | None = None) -> str | None:
    """Why a backend cannot run here (in this type), in a few words; None: it can."""
    missing = _part(name, "missing")
    why: str | None = missing(device) if missing else None
    if why is None and dtype is not None and not takes_dtype(name, dtype):
        return f"it does not take {_text(dtype)} on this machine"
    return why


def cannot_take(name: str, model: ModelSpec) -> str | None:
    """Why a backend cannot run the experts of a model, in a few words; None: it can."""
    backend = EXPERT_BACKENDS[name]
    is_plain = not model.has_expert_bias and model.activation != "clamped-swiglu"
    if not (is_plain or backend.takes_biases):
        return f"experts of {model.name} have biases or a clamped activation"
    if backend.is_gated_only and model.expert_matrices != 3:
        return f"experts of {model.name} are not gated"
    return None


def takes_dtype(name: str, dtype: torch.dtype) -> bool:
    """Whether a backend computes in a type on this processor."""
    takes = _part(name, "takes_dtype")
    return _text(dtype) in EXPERT_BACKENDS[name].dtypes and (takes is None or takes(dtype))


def layout_builder(name: str) -> Callable[[ExpertWeights], object] | None:
    """What makes a backend's copy of the weights before its first call; None: it needs none."""
    builder: Callable[[ExpertWeights], object] | None = _part(name, "build_layout")
    return builder


def free_scratch(name: str) -> None:
    """Free the memory that a backend keeps from call to call, if it keeps some."""
    if free := _part(name, "free_scratch"):
        free()


def _part(name: str, part: str) -> Any:
    module = EXPERT_BACKENDS[name].module or name
    return getattr(importlib.import_module(f"moebench.experts.{module}"), part, None)


def _text(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
