"""Evaluation of a language model under its routers: losses and routing of every token of a text.

Windows run in batches that are spread over the text, since neighbours come from one file and would
route alike. Tokens at one position of a batch's windows are one decode batch: a router whose choice
depends on the others (`oea`) sees them together.
"""

import functools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from moebench import terminal
from moebench.experts.weights import Experts
from moebench.model.language_model import LanguageModel, token_losses
from moebench.routers.routing import Router, Routing
from moebench.train.text import Windows

BATCH_WINDOWS = 32
"""Windows of one forward pass where the router does not depend on the batch."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a model and its routers did with every token of a text's windows.

    Entry i of a window belongs to the state of its byte i, which predicts byte i + 1.
    """

    losses: Float[np.ndarray, "windows length"]
    """-log p of the next byte in nats."""
    visits: Bool[np.ndarray, "layers windows length experts"]
    """Whether a token runs an expert."""
    first: Int[np.ndarray, "layers windows length"]
    """Expert of the largest weight; `num_experts` for a token that runs none."""
    batch_windows: int
    """Windows of a batch."""
    is_batch_aware: bool
    """Whether a choice depended on the batch."""

    @property
    def window_losses(self) -> NDArray[np.float64]:
        """Mean loss of each window, nats a byte: what intervals are made of."""
        return np.asarray(self.losses.mean(axis=1, dtype=np.float64))

    @functools.cached_property
    def k(self) -> NDArray[np.int64]:
        """Experts that each token runs, [layers, windows, length]."""
        return np.asarray(self.visits.sum(axis=-1))

    @property
    def mean_k(self) -> NDArray[np.float64]:
        """Mean experts a token by layer, [layers]."""
        return np.asarray(self.k.mean(axis=(1, 2)))


def evaluate(
    language_model: LanguageModel,
    routers: Sequence[Router],
    windows: Windows,
    experts: Experts,
    batch_windows: int = BATCH_WINDOWS,
) -> Evaluation:
    """Losses and routing of all windows, [windows, length + 1], in evaluation mode.

    Args:
        batch_windows: Windows of a decode batch; it changes the result of batch-aware routers only.
    """
    count, length = len(windows), windows.shape[1] - 1
    layers, num_experts = len(routers), language_model.model.num_experts
    losses = np.zeros((count, length), np.float32)
    visits = np.zeros((layers, count, length, num_experts), np.bool_)
    first = np.zeros((layers, count, length), np.int16)
    device = language_model.embedding.weight.device
    with evaluating(language_model, routers, length), terminal.Bar(1.0) as bar:
        start = time.perf_counter()
        groups = spread_groups(count, batch_windows)
        for number, group in enumerate(groups, start=1):
            batch = windows[torch.from_numpy(group)].to(device)
            logits, routings = language_model(batch[:, :-1], routers, experts)
            losses[group] = token_losses(logits, batch[:, 1:]).cpu().numpy()
            for layer, routing in enumerate(routings):
                shape = (len(group), length)
                visits[layer, group] = _visits(routing).view(*shape, -1).cpu().numpy()
                first[layer, group] = _first(routing).view(shape).cpu().numpy()
            bar.expect((time.perf_counter() - start) * len(groups) / number)
            bar.tell(f"evaluation, {number * batch_windows * length:,} tokens")
    is_batch_aware = any(hasattr(router, "positions") for router in routers)
    return Evaluation(losses, visits, first, batch_windows, is_batch_aware)


def spread_groups(count: int, size: int) -> list[NDArray[np.int64]]:
    """Indices of windows in groups of at most `size`, each spread over the whole text."""
    num_groups = -(-count // size)
    return [np.arange(first, count, num_groups) for first in range(num_groups)]


@contextmanager
def evaluating(model: LanguageModel, routers: Sequence[Router], length: int) -> Iterator[None]:
    """Evaluation mode without gradients; batch-aware routers know the length of a window."""
    modules = [model, *routers]
    before = [(module, module.training) for module in modules]
    positions = [(router, router.positions) for router in routers if hasattr(router, "positions")]
    try:
        for module in modules:
            module.eval()
        for router, _ in positions:
            router.positions = length  # type: ignore[assignment]  # an attribute of some routers
        with torch.no_grad():
            yield
    finally:
        for module, was_training in before:
            module.train(was_training)
        for router, kept in positions:
            router.positions = kept


def _visits(routing: Routing) -> Bool[Tensor, "tokens experts"]:
    """Whether each token runs each expert."""
    shape = (routing.num_tokens, routing.num_experts)
    visits = torch.zeros(shape, dtype=torch.bool, device=routing.token_indices.device)
    visits[routing.token_indices, routing.expert_indices] = True
    return visits


def _first(routing: Routing) -> Int[Tensor, " tokens"]:
    """The expert of each token's largest weight; the number of experts for a token without."""
    weights, slots = routing.slots
    if not slots.shape[1]:
        return slots.new_full((routing.num_tokens,), routing.num_experts)
    return slots.gather(1, weights.argmax(1, keepdim=True)).squeeze(1)
