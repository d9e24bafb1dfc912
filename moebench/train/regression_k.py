"""The recipe of regression-k: measure what experts are worth on a trained base, and fit it.

A batch takes one forward pass of the base and, for each layer and each further expert, one with
that layer alone at other counts. The target of a token is the change of the loss of the prediction
that its own position makes; what its count does to later positions is noise to this regression.
Nothing of the base changes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from moebench.routers.operating_point import MEAN_K_TOLERANCE
from moebench.routers.policy import policy
from moebench.routers.regression_k.module import RegressionKRouter
from moebench.routers.regression_k.train import HELD_OUT, Costs, Fit, Inputs, Sums, fit
from moebench.routers.routing import Router, build_routers
from moebench.routers.thresholds import threshold_for
from moebench.routers.top_k.module import TopKRouter
from moebench.train.base import Network, mean_loss
from moebench.train.layer_costs import running
from moebench.train.routing_metrics import routing_metrics
from moebench.train.run import Trained
from moebench.train.text import Windows

PARTS = ("fitted", "held_out")
"""Parts of the batches, each with sums of its own."""
SHARED_ROUNDS = 8
"""Most rounds of `set_shared_mean`: a layer's inputs change with the counts below it."""


@dataclass(frozen=True)
class RegressionKOptions:
    """How the checkpoint decides; a comparison sets its own thresholds."""

    least_cost: float = 0.0
    """Predicted rise of the loss, in nats, from which on an expert runs."""


class RegressionKRecipe:
    """Fits the costs that regression-k predicts on a trained base with top-k."""

    def __init__(self, base: Network, options: RegressionKOptions) -> None:
        self.base = base.eval().requires_grad_(False)
        self.network = with_costs(base, options).eval().requires_grad_(False)
        self.fits: tuple[Fit, ...] = ()
        hidden = base.language_model.model.hidden_size
        self.sums = [
            tuple(Sums(hidden, router.top_k - 1) for _ in PARTS) for router in costed(self.network)
        ]

    @torch.no_grad()
    def step(self, batch: Windows, step: int) -> dict[str, float]:
        with inputs_of(self.base.stack) as inputs:
            losses, _ = self.base.losses(batch)
        xs = [torch.cat(seen) for seen in inputs]
        metrics = {"loss": float(losses.mean())}
        is_held_out = step % HELD_OUT == HELD_OUT - 1
        for layer, x in enumerate(xs):
            targets = costed(self.network)[layer].top_k - 1
            costs = measured_costs(self.base, batch, layer, targets, losses)
            self.sums[layer][is_held_out].add(x, costs)
            metrics[f"cost_of_layer_{layer}"] = float(costs[:, -1].mean())
        return metrics

    def tensors(self) -> dict[str, Tensor]:
        saved = dict(self.network.named_weights())
        for layer, parts in enumerate(self.sums):
            for part, sums in zip(PARTS, parts, strict=True):
                for name, tensor in sums.tensors().items():
                    saved[f"training.{layer}.{part}.{name}"] = tensor
        return saved

    def validation_loss(self, windows: Windows) -> float:
        """Loss with the costs fitted to all batches so far."""
        self.fits = tuple(fit(*parts) for parts in self.sums)
        for router, found in zip(costed(self.network), self.fits, strict=True):
            router.set_costs(found.weight, found.bias)
        return mean_loss(self.network, windows)


def trained_fits(trained: Trained) -> tuple[Fit, ...]:
    """The fit of each layer of a finished training, with its R^2, from the sums that it saved."""
    model, fits = trained.manifest.model, []
    for layer in range(model.num_layers):
        parts = []
        for part in PARTS:
            prefix = f"training.{layer}.{part}."
            sums = Sums(model.hidden_size, len(trained.tensors[f"{prefix}square"]))
            for name, tensor in sums.tensors().items():
                tensor.copy_(trained.tensors[prefix + name])
            parts.append(sums)
        fits.append(fit(*parts))
    return tuple(fits)


def with_costs(base: Network, options: RegressionKOptions) -> Network:
    """The base's network with regression-k in place of its own routers."""
    model = base.language_model.model
    own = policy("regression-k", {"least_cost": options.least_cost})
    built = build_routers(own, model, model.num_layers, torch.float32)
    for router, top_k in zip(built, base.stack, strict=True):
        if type(top_k) is not TopKRouter:
            raise ValueError(f"found a base with {type(top_k).__name__}, expected one with top-k")
        correction = top_k.selection_bias.float() if model.gate.has_correction_bias else None
        router.start_from_base(top_k.weight, correction, top_k.bias)
    return Network(base.language_model, built)


def costed(network: Network) -> list[RegressionKRouter]:
    """The network's routers, which are all regression-k."""
    return [router for router in network.routers if isinstance(router, RegressionKRouter)]


@torch.no_grad()
def measured_costs(
    base: Network, batch: Windows, layer: int, targets: int, losses: Tensor
) -> Costs:
    """Rise of each token's own loss with j experts in place of j + 1 in one layer alone.

    Args:
        targets: The largest j; the smallest is 1.
        losses: Those of the base on this batch, [batch, length].
    """
    router = base.stack[layer]
    assert isinstance(router, TopKRouter)
    by_count = []
    for count in range(1, targets + 2):
        if count == router.top_k:
            by_count.append(losses.flatten())
            continue
        with running(router, count):
            by_count.append(base.losses(batch)[0].flatten())
    return torch.stack(by_count, 1).diff(dim=1).neg()


@contextmanager
def inputs_of(routers: Sequence[Router]) -> Iterator[list[list[Inputs]]]:
    """Within it, the input of each router in each forward pass is kept."""
    seen: list[list[Inputs]] = [[] for _ in routers]

    def keep(layer: int, x: Tensor) -> None:
        seen[layer].append(x)

    handles = [
        router.register_forward_pre_hook(lambda _, given, layer=layer: keep(layer, given[0]))
        for layer, router in enumerate(routers)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def set_shared_mean(network: Network, windows: Windows, mean: float) -> float:
    """Set one threshold for all layers, so that tokens run `mean` experts; the mean reached.

    Layers then differ in k by their costs. A mean that misses by more than 1 % is refused.
    """
    network.eval()
    routers, reached = costed(network), 0.0
    if not 1 <= mean <= routers[0].top_k:
        raise ValueError(f"mean_k: found {mean:g}, expected 1 to max_k = {routers[0].top_k}")
    for _ in range(SHARED_ROUNDS):
        with inputs_of(routers) as inputs:
            reached = routing_metrics(network.losses(windows)[1])["mean_k"]
        if abs(reached / mean - 1) <= MEAN_K_TOLERANCE / 4:
            return reached
        needs = [
            router.needs(router.scores(seen[0])[0]).flatten()
            for router, seen in zip(routers, inputs, strict=True)
        ]
        tokens = len(routers) * len(inputs[0][0])
        threshold = threshold_for(torch.cat(needs), round((mean - 1) * tokens))
        for router in routers:
            router.thresholds.fill_(threshold)
    reached = routing_metrics(network.losses(windows)[1])["mean_k"]
    if abs(reached / mean - 1) > MEAN_K_TOLERANCE:
        raise ValueError(
            f"mean_k: reached {reached:.4g}, expected {mean:g} within "
            f"{100 * MEAN_K_TOLERANCE:.0f} %; use more windows"
        )
    return reached
