"""The experts of a transformers model, run raggedly on its own weights: nothing is copied.

Most families stack gate above up as [experts, 2 * intermediate, hidden], which is our layout.
gpt-oss stores [experts, hidden, 2 * intermediate] with gate and up taking turns: it is read
through transposed views, and its activation reads every second column. Backends that keep weights
in a layout of their own make their copy of them, as they do of ours.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from moebench.experts.weights import Clamp, Experts, ExpertWeights
from moebench.model.huggingface.replace import replacement
from moebench.routers.routing import Hidden, Routing


class ModuleWeights(ExpertWeights):
    """Views of the weights of a transformers experts module, whatever it holds at the moment."""

    def __init__(self, module: Any) -> None:
        nn.Module.__init__(self)
        # In a tuple: the module contains these weights, and torch would count it as their child.
        self._source = (module,)
        self._layouts = {}
        self.clamp = _clamp(module)

    @property
    def gate_up(self) -> Tensor:  # type: ignore[override]
        """First matrices as [experts, 2 * intermediate, hidden]."""
        return self._matrix("gate_up_proj")

    @property
    def down(self) -> Tensor:  # type: ignore[override]
        """Second matrices as [experts, hidden, intermediate]."""
        return self._matrix("down_proj")

    @property
    def gate_up_bias(self) -> Tensor | None:  # type: ignore[override]
        """Biases of the first matmul."""
        return getattr(self._source[0], "gate_up_proj_bias", None)

    @property
    def down_bias(self) -> Tensor | None:  # type: ignore[override]
        """Biases of the second matmul."""
        return getattr(self._source[0], "down_proj_bias", None)

    def _matrix(self, name: str) -> Tensor:
        (module,) = self._source
        stored: Tensor = getattr(module, name)
        return stored.transpose(1, 2) if module.is_transposed else stored


def _clamp(module: Any) -> Clamp | None:
    """The limits of a module's activation; a ValueError where we have no such activation."""
    if hasattr(module, "limit") and hasattr(module, "alpha"):
        return Clamp(module.alpha, module.limit, is_interleaved=not module.is_concatenated)
    points = torch.linspace(-3.0, 3.0, 7)
    found = getattr(module, "act_fn", None)
    if found is None or not torch.equal(found(points), functional.silu(points)):
        name = type(module).__name__
        raise ValueError(f"{name}: act_fn: found {found}, expected SiLU, or gpt-oss's clamped one")
    return None


class RaggedExperts(nn.Module):
    """Runs a routing on the experts of a family; stands before the family's class in its bases."""

    execution: Experts
    expert_weights: tuple[ModuleWeights]

    def forward(self, hidden_states: Hidden, routing: Routing, *_: Routing) -> Hidden:
        """Sums of the weighted outputs of each token's experts."""
        return self.execution(hidden_states, routing, self.expert_weights[0])


def ragged_experts(module: nn.Module, execution: Experts) -> RaggedExperts:
    """The experts of a family's module, run by one of our backends."""
    ragged = replacement(module, RaggedExperts)
    ragged.execution = execution
    # In a tuple: its tensors are the module's own, and they would be found a second time.
    ragged.expert_weights = (ModuleWeights(ragged),)
    return ragged
