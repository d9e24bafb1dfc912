"""What one expert fewer costs in each layer alone, measured; and a fixed k per layer by it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from moebench.compare.loss_intervals import window_interval
from moebench.records.quality import SignedInterval
from moebench.routers.routing import Router
from moebench.routers.top_k.module import TopKRouter
from moebench.train.base import EVALUATION_BATCH, Network
from moebench.train.text import Windows


@dataclass(frozen=True)
class LayerCost:
    """The rise of the loss when every token of one layer runs one expert fewer, nats per token."""

    layer: int
    top_k: int
    """Experts per token before; the rise is that of one fewer."""
    rise: SignedInterval
    """Mean over windows, paired with the base, with its interval of 95 %."""


@contextmanager
def running(router: Router, count: int) -> Iterator[None]:
    """Within it, a base's top-k router runs its `count` best experts for every token."""
    if type(router) is not TopKRouter or not 1 <= count <= router.num_experts:
        raise ValueError(
            f"found {count} experts of {type(router).__name__}, expected at least one of a base "
            "with top-k"
        )
    before, router.top_k = router.top_k, count
    try:
        yield
    finally:
        router.top_k = before


@torch.no_grad()
def layer_costs(network: Network, windows: Windows) -> tuple[LayerCost, ...]:
    """Measured costs of all layers of a base with top-k, each reduced alone."""
    network.eval()
    base, found = window_losses(network, windows), []
    for layer, router in enumerate(network.stack):
        assert isinstance(router, TopKRouter)
        top_k = router.top_k
        with running(router, top_k - 1):
            rise = window_losses(network, windows) - base
        found.append(LayerCost(layer, top_k, window_interval(rise)))
    return tuple(found)


@torch.no_grad()
def window_losses(
    network: Network, windows: Windows, routers: Sequence[Router] | None = None
) -> NDArray[np.float64]:
    """Mean loss of each window in nats per token, [windows]."""
    firsts = range(0, len(windows), EVALUATION_BATCH)
    parts = [windows[first : first + EVALUATION_BATCH] for first in firsts]
    means = [network.losses(part, routers)[0].double().mean(1) for part in parts]
    return np.asarray(torch.cat(means).numpy())


def static_k(costs: Sequence[LayerCost], mean_k: float) -> tuple[int, ...]:
    """A fixed k for each layer with a mean of at most `mean_k`: the cheapest layers go first.

    Each layer loses one expert at most, and costs of layers reduced together are taken as their
    sum. A mean that one fewer in every layer does not reach is refused.
    """
    ks = [cost.top_k for cost in costs]
    for cost in sorted(costs, key=lambda cost: cost.rise.value):
        if sum(ks) <= mean_k * len(ks) + 1e-9:
            break
        ks[cost.layer] -= 1
    if sum(ks) > mean_k * len(ks) + 1e-9:
        raise ValueError(
            f"mean_k: found {mean_k:g}, expected at least {sum(ks) / len(ks):g}: one expert fewer "
            "in every layer"
        )
    return tuple(ks)
