"""Ragged expert execution: dispatch, the experts' feed-forward networks, combine.

A backend is a function `experts(x, routing, weights) -> y`, one file each, registered under the
name that `moebench.experts.catalogue.EXPERT_BACKENDS` prices: ours, and adapters for kernels that
people deploy, which are active where their package is. All compute the same thing,

    y_t = sum over the assignments (t, e) of weight_te * expert_e(x_t),

and compute it for the assignments only: no padded rows, no slots of weight zero. A token without
an assignment gets exact zeros; a step without tokens and an expert without tokens are ordinary.
Gradients flow to x, to the routing weights and to the experts' weights, unless a backend is for
inference only.
"""

import functools
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from moebench.routers.routing import Routing
from moebench.spec.model import ModelSpec
from moebench.units import Bytes, nearest

Layout = TypeVar("Layout")


class ExpertWeights(nn.Module):
    """The routed experts of one layer, stacked; uninitialised until somebody fills them.

    `gate_up` [experts, 2 * intermediate, hidden] holds each expert's gate matrix above its up
    matrix; experts of two matrices have [experts, intermediate, hidden]. `down` is
    [experts, hidden, intermediate].
    """

    def __init__(self, model: ModelSpec, dtype: torch.dtype) -> None:
        super().__init__()
        experts, hidden, inner = model.num_experts, model.hidden_size, model.intermediate_size
        width = inner * (model.expert_matrices - 1)
        self.gate_up = nn.Parameter(torch.empty(experts, width, hidden, dtype=dtype))
        self.down = nn.Parameter(torch.empty(experts, hidden, inner, dtype=dtype))

        self._layouts: dict[str, tuple[tuple[int, ...], object]] = {}

    @property
    def num_experts(self) -> int:
        return self.down.shape[0]

    @property
    def is_gated(self) -> bool:
        return self.gate_up.shape[1] == 2 * self.down.shape[2]

    def laid_out(self, name: str, lay_out: Callable[["ExpertWeights"], Layout]) -> Layout:
        """The weights as a backend wants them: made on its first call, kept until they change.

        A second copy in memory, beside the parameters. Changes are seen by the version that torch
        counts for each tensor; what is written through `.data`, or into weights that were made in
        inference mode, goes unseen.
        """
        kept = self._layouts.get(name)
        if kept is None or kept[0] != self._changes():
            self._layouts.pop(name, None)
            with torch.inference_mode(False), torch.no_grad():
                kept = self._changes(), lay_out(self)
            self._layouts[name] = kept
        return kept[1]  # type: ignore[return-value]

    def _changes(self) -> tuple[int, ...]:
        tensors = (self.gate_up, self.down)
        versions = [0 if t.is_inference() else t._version for t in tensors]
        return (*versions, *(t.data_ptr() for t in tensors))

    def keep_only_layout(self, name: str) -> None:
        """Free the parameters, which from then on only the backend `name` can do without.

        Does nothing where that backend runs on the parameters themselves.
        """
        if name in self._layouts:
            layout = self._layouts[name][1]
            for parameter in self.parameters():
                parameter.untyped_storage().resize_(0)
            self._layouts = {name: (self._changes(), layout)}

    def forget_layouts(self, but: str) -> None:
        """Free what other backends than `but` keep beside the parameters."""
        self._layouts = {name: kept for name, kept in self._layouts.items() if name == but}

    @property
    def laid_out_bytes(self) -> Bytes:
        """Memory of the copies that backends keep; a module that shares the parameters is none."""
        return float(sum(_bytes(kept) for _, kept in self._layouts.values()))


def _bytes(layout: object) -> int:
    if isinstance(layout, Tensor):
        return layout.numel() * layout.element_size()
    return sum(map(_bytes, layout)) if isinstance(layout, tuple | list) else 0


Experts = Callable[[Tensor, Routing, ExpertWeights], Tensor]


def runs_everywhere(device: torch.device) -> None:
    """Nothing is missing."""


@dataclass(frozen=True)
class Backend:
    """An expert execution and what it can do."""

    name: str
    run: Experts
    missing: Callable[[torch.device], str | None] = runs_everywhere
    """Why it does not run on a device here, in a few words; None: it does."""
    has_gradients: bool = True
    is_gated_only: bool = False
    """Experts of two matrices are beyond it."""
    dtypes: tuple[torch.dtype, ...] = (
        torch.float64,
        torch.float32,
        torch.bfloat16,
        torch.float16,
    )
    takes_slots: bool = False
    """It wants the router's dense slots (`Routing.slots`) and sorts them itself."""
    owns_process: bool = False
    """It brings a matmul library that must not share a process with oneDNN's."""
    hides_flops: bool = False
    """Its matmuls are no operations that FLOP counters know."""
    lay_out: Callable[[ExpertWeights], object] | None = None
    """Makes the copy of the weights that its first call would make."""
    let_go: Callable[[], None] | None = None
    """Frees what it keeps from call to call, beside the weights."""


_BACKENDS: dict[str, Backend] = {}


def backend(
    name: str,
    *,
    missing: Callable[[torch.device], str | None] = runs_everywhere,
    has_gradients: bool = True,
    is_gated_only: bool = False,
    dtypes: tuple[torch.dtype, ...] = Backend.dtypes,
    takes_slots: bool = False,
    owns_process: bool = False,
    hides_flops: bool = False,
    lay_out: Callable[[ExpertWeights], object] | None = None,
    let_go: Callable[[], None] | None = None,
) -> Callable[[Experts], Experts]:
    """Decorator: register an expert execution under its name; see `Backend` for the rest."""

    def add(experts: Experts) -> Experts:
        _BACKENDS[name] = Backend(
            name,
            experts,
            missing,
            has_gradients,
            is_gated_only,
            dtypes,
            takes_slots,
            owns_process,
            hides_flops,
            lay_out,
            let_go,
        )
        return experts

    return add


def load_backend(name: str, device: torch.device | str = "cpu") -> Experts:
    """The expert execution of that name.

    Raises:
        ValueError: nothing of that name is registered, with the nearest known one; or it does not
            run on the device here, with the reason.
    """
    if name not in known_backends():
        raise ValueError(f"unknown expert backend {name!r}{nearest(name, known_backends())}")
    why = known_backends()[name].missing(torch.device(device))
    if why is not None:
        raise ValueError(f"expert backend {name!r} does not run here: {why}")
    return known_backends()[name].run


def why_not(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a backend cannot run a case here, in a few words; None: it can."""
    backend = known_backends()[name]
    if backend.missing(device) is None and dtype not in backend.dtypes:
        return f"it does not take {str(dtype).removeprefix('torch.')} on this machine"
    return backend.missing(device)


def feed_forward(
    x: Float[Tensor, "tokens hidden"],
    gate_up: Float[Tensor, "width hidden"],
    down: Float[Tensor, "hidden intermediate"],
) -> Float[Tensor, "tokens hidden"]:
    """One expert: down (SiLU(gate x) * up x), or down relu(up x)^2 where it has two matrices.

    **Source**: SwiGLU, Shazeer (2002.05202), equation 6; squared ReLU, So et al. (2109.08668).
    """
    hidden = functional.linear(x, gate_up)
    return functional.linear(activation(hidden, down.shape[1]), down)


def activation(
    hidden: Float[Tensor, "tokens width"], intermediate_size: int
) -> Float[Tensor, "tokens intermediate"]:
    """SiLU(gate) * up of a first matmul twice as wide, or relu(hidden)^2 of one that is not."""
    if hidden.shape[1] == intermediate_size:
        return functional.relu(hidden).square()
    gate, up = hidden.chunk(2, dim=-1)
    activated = functional.silu(gate)
    # Autograd keeps SiLU's result for the gradient of `up`; without it there is nothing to keep.
    return activated * up if torch.is_grad_enabled() else activated.mul_(up)


def known_backends() -> dict[str, Backend]:
    """Every expert execution by its name; the first call imports them."""
    _import_all()
    return _BACKENDS


@functools.cache
def _import_all() -> None:
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"moebench.experts.{module.name}")
