"""Weights of the routed experts, and one expert's feed-forward network.

An expert execution ("backend") is a function `experts(x, routing, weights) -> y`, one file each
in this folder: ours, and adapters for kernels that people deploy. All compute

    y_t = sum over the assignments (t, e) of weight_te * expert_e(x_t)

for the assignments only. A token without an assignment gets exact zeros; a step without tokens and
an expert without tokens are ordinary. Gradients flow to x, to the routing weights and to the
experts' weights, unless the backend is for inference only.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from moebench.routers.routing import Hidden, Routing
from moebench.spec.model import ModelSpec
from moebench.units import Bytes

Built = TypeVar("Built")
Bias = Tensor | None
"""Bias of one matmul; None: it has none."""


class Clamp(NamedTuple):
    """Limits of a clamped SwiGLU: (up + 1) * gate * sigmoid(alpha * gate), as gpt-oss has it.

    `gate` is at most `limit`, and `up` between -`limit` and `limit`.

    **Source**: transformers 5.23, modeling_gpt_oss.py, `GptOssExperts._apply_gate`.
    """

    alpha: float = 1.702
    limit: float = 7.0
    is_interleaved: bool = False
    """Whether gate and up take turns among the columns; False: gate first."""


class ExpertWeights(nn.Module):
    """The routed experts of one layer, stacked; uninitialised as built.

    `gate_up` is [experts, 2 * intermediate, hidden], gate above up, or without gate
    [experts, intermediate, hidden]; `down` is [experts, hidden, intermediate]. gpt-oss has biases
    on both matmuls and a clamped activation: backends with `takes_biases` in the catalogue run it.
    """

    gate_up: Tensor
    down: Tensor
    gate_up_bias: Tensor | None
    """[experts, 2 * intermediate], or None."""
    down_bias: Tensor | None
    """[experts, hidden], or None."""
    clamp: Clamp | None
    """Limits of the activation; None: it has none."""

    def __init__(self, model: ModelSpec, dtype: torch.dtype) -> None:
        super().__init__()
        experts, hidden, inner = model.num_experts, model.hidden_size, model.intermediate_size
        width = inner * (model.expert_matrices - 1)
        self.gate_up = nn.Parameter(torch.empty(experts, width, hidden, dtype=dtype))
        self.down = nn.Parameter(torch.empty(experts, hidden, inner, dtype=dtype))
        for name, size in (("gate_up_bias", width), ("down_bias", hidden)):
            bias = torch.empty(experts, size, dtype=dtype) if model.has_expert_bias else None
            self.register_parameter(name, None if bias is None else nn.Parameter(bias))
        self.clamp = Clamp() if model.activation == "clamped-swiglu" else None
        self._layouts: dict[str, tuple[tuple[int, ...], object]] = {}

    @property
    def num_experts(self) -> int:
        return self.down.shape[0]

    @property
    def is_gated(self) -> bool:
        return self.gate_up.shape[1] == 2 * self.down.shape[2]

    @property
    def is_plain(self) -> bool:
        """Whether the experts have neither biases nor a clamped activation."""
        return self.clamp is None and self.gate_up_bias is None and self.down_bias is None

    def biases(self, expert: int) -> tuple[Bias, Bias]:
        """Biases of one expert's two matmuls."""
        return of_expert(self.gate_up_bias, expert), of_expert(self.down_bias, expert)

    def cached_layout(self, name: str, build: Callable[["ExpertWeights"], Built]) -> Built:
        """The weights in a backend's layout: built on its first call, cached until they change.

        Changes show in the version that torch counts for each tensor; writes through `.data`, and
        into weights made in inference mode, are missed.
        """
        cached = self._layouts.get(name)
        if cached is None or cached[0] != self._versions():
            self._layouts.pop(name, None)
            with torch.inference_mode(False), torch.no_grad():
                cached = self._versions(), build(self)
            self._layouts[name] = cached
        return cached[1]  # type: ignore[return-value]

    def _versions(self) -> tuple[int, ...]:
        tensors = (self.gate_up, self.down)
        versions = [0 if t.is_inference() else t._version for t in tensors]
        return (*versions, *(t.data_ptr() for t in tensors))

    def drop_layouts(self, keep: str) -> None:
        """Free the layouts of all backends but `keep`."""
        self._layouts = {name: cached for name, cached in self._layouts.items() if name == keep}

    def drop_parameters(self) -> None:
        """Free the parameters, if a layout is cached: from then on only its backend can run."""
        if self._layouts:
            for parameter in self.parameters():
                parameter.untyped_storage().resize_(0)
            versions = self._versions()
            self._layouts = {name: (versions, cached[1]) for name, cached in self._layouts.items()}

    @property
    def layout_bytes(self) -> Bytes:
        """Memory of all cached layouts; a module that shares the parameters counts as 0."""
        return float(sum(_bytes(layout) for _, layout in self._layouts.values()))


def of_expert(biases: Bias, expert: int) -> Bias:
    """One expert's row of stacked biases, where there are any."""
    return None if biases is None else biases[expert]


def _bytes(layout: object) -> int:
    if isinstance(layout, Tensor):
        return layout.numel() * layout.element_size()
    return sum(map(_bytes, layout)) if isinstance(layout, tuple | list) else 0


Experts = Callable[[Tensor, Routing, ExpertWeights], Tensor]


class Residual(NamedTuple):
    """The residual stream that a layer's expert outputs are added to, times a factor."""

    stream: Float[Tensor, "*tokens hidden"]
    multiplier: float = 1.0


def added(
    y: Float[Tensor, "*tokens hidden"], residual: Residual | None
) -> Float[Tensor, "*rows hidden"]:
    """The outputs of a half layer on the residual stream, where there is one."""
    if residual is None:
        return y
    scaled = y if residual.multiplier == 1 else y * residual.multiplier
    return residual.stream + scaled.view_as(residual.stream)


@dataclass(frozen=True)
class AddingExperts:
    """An expert execution that adds its outputs to the residual stream without a further launch."""

    execution: Callable[[Tensor, Routing, ExpertWeights, Residual | None], Tensor]

    def __call__(
        self,
        x: Tensor,
        routing: Routing,
        weights: ExpertWeights,
        residual: Residual | None = None,
    ) -> Tensor:
        return self.execution(x, routing, weights, residual)


def not_installed(package: str) -> str | None:
    """Why a package cannot be imported; None: it can."""
    spec = importlib.util.find_spec(package)
    # A folder of its name without a package in it has a spec too, but no origin.
    return f"{package} is not installed" if spec is None or spec.origin is None else None


def feed_forward(
    x: Hidden,
    gate_up: Float[Tensor, "width hidden"],
    down: Float[Tensor, "hidden intermediate"],
    biases: tuple[Bias, Bias] = (None, None),
    clamp: Clamp | None = None,
) -> Hidden:
    """One expert's output: down (SiLU(gate x) * up x), or down relu(up x)^2 with two matrices.

    **Source**: SwiGLU, Shazeer (2002.05202), equation 6; squared ReLU, So et al. (2109.08668).
    """
    hidden = plus(functional.linear(x, gate_up), biases[0])
    return plus(functional.linear(activation(hidden, down.shape[1], clamp), down), biases[1])


def plus(product: Float[Tensor, "tokens outputs"], bias: Bias) -> Float[Tensor, "tokens outputs"]:
    """A product and its bias, rounded before the sum and after it as gpt-oss's own code does."""
    return product if bias is None else product + bias


def activation(
    hidden: Float[Tensor, "tokens width"], intermediate_size: int, clamp: Clamp | None = None
) -> Float[Tensor, "tokens intermediate"]:
    """SiLU(gate) * up of a first matmul twice as wide, or relu(hidden)^2 of one that is not."""
    if hidden.shape[1] == intermediate_size:
        return functional.relu(hidden).square()
    if clamp is not None:
        gate, up = clamped(hidden, clamp)
        return (up + 1) * (gate * torch.sigmoid(clamp.alpha * gate))
    gate, up = hidden.chunk(2, dim=-1)
    activated = functional.silu(gate)
    # In place only without autograd, which needs SiLU's result for the gradient of `up`.
    return activated * up if torch.is_grad_enabled() else activated.mul_(up)


def gate_and_up(
    hidden: Float[Tensor, "tokens width"], clamp: Clamp
) -> tuple[Float[Tensor, "tokens intermediate"], Float[Tensor, "tokens intermediate"]]:
    """Views of both halves of a first matmul."""
    if clamp.is_interleaved:
        return hidden[:, ::2], hidden[:, 1::2]
    gate, up = hidden.chunk(2, dim=-1)
    return gate, up


def clamped(
    hidden: Float[Tensor, "tokens width"], clamp: Clamp
) -> tuple[Float[Tensor, "tokens intermediate"], Float[Tensor, "tokens intermediate"]]:
    """Gate and up within their limits."""
    gate, up = gate_and_up(hidden, clamp)
    return gate.clamp(max=clamp.limit), up.clamp(-clamp.limit, clamp.limit)
