"""Routers brought to a mean k in each layer of a language model, and the gain of one over them.

What a router learnt about tokens shows only beside one that runs as many experts in each layer at
tokens drawn at random; what it learnt about layers, between that and one mean k for all layers.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from moebench.compare.loss_intervals import gain_split
from moebench.experts.weights import Experts
from moebench.model.language_model import LanguageModel
from moebench.records.router_use import GainSplit
from moebench.routers.thresholds import ThresholdRouter
from moebench.train.quality import Evaluation, evaluate, evaluating
from moebench.train.text import Windows


@dataclass(frozen=True, eq=False)
class EqualK:
    """Routers with thresholds that a language model runs at any mean k of its layers."""

    language_model: LanguageModel
    routers: Sequence[ThresholdRouter]
    experts: Experts
    stream: Windows
    """Windows on which the means are set, in one forward pass: of text for training, not those of
    an evaluation."""

    def set_means(self, means: Sequence[float]) -> None:
        """Set each layer's thresholds to its mean k on the stream, from the lowest layer up.

        A layer's input depends on the experts that run below it, so it is set within the pass.
        """
        handles = [
            router.register_forward_pre_hook(functools.partial(_set_mean, mean))
            for router, mean in zip(self.routers, means, strict=True)
        ]
        try:
            with evaluating(self.language_model, self.routers, self.stream.shape[1] - 1):
                device = self.language_model.embedding.weight.device
                self.language_model(self.stream[:, :-1].to(device), self.routers, self.experts)
        finally:
            for handle in handles:
                handle.remove()

    def gain(self, own: Evaluation, windows: Windows) -> GainSplit:
        """The gain of a router over these at its mean k; they are meant to be `random-k`.

        Args:
            own: Evaluation of the router, on the same weights of the model.
            windows: The windows that `own` was evaluated on.
        """
        means = own.mean_k.tolist()
        found = []
        for layer_means in ([float(np.mean(means))] * len(means), means):
            self.set_means(layer_means)
            found.append(evaluate(self.language_model, self.routers, windows, self.experts))
        same, layered = found
        reached = tuple(float(each.mean_k.mean()) for each in (same, layered, own))
        return gain_split(same.window_losses, layered.window_losses, own.window_losses, reached)


@torch.no_grad()
def _set_mean(mean: float, router: nn.Module, arguments: tuple[Any, ...]) -> None:
    """Before a router runs, set its mean k on the tokens that it is about to route."""
    assert isinstance(router, ThresholdRouter)
    scores, _ = router.scores(*arguments[:2])
    router.set_mean(scores, mean)
