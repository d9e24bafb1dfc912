"""The recipe of Ada-K: PPO on the allocators of a trained model, of which all else stays frozen.

A batch takes two forward passes without gradient: one with the base's top-k, one with drawn
counts, during which each layer's router input is stored. PPO's epochs are products of stored
inputs and allocators; their first computes the probabilities that the counts were drawn with, and
the ratio is 1 there. Before PPO, allocators are fitted to labels (the paper's warm start), which
takes the top-k forward alone. No activation of the model is kept for a backward pass, so there is
nothing that gradient checkpointing could save.

**Source** Yue et al., ICLR 2025, section 3 and Table 11.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from moebench.routers.ada_k.module import AdaKRouter, CountLogits, decoded_counts
from moebench.routers.ada_k.train import (
    AdaKTraining,
    Advantages,
    Counts,
    LogProbabilities,
    advantages_of_layers,
    cumulated_probabilities,
    expected_counts,
    experts_to_reach,
    policy_loss,
    probability_of_counts,
    signal,
    warm_loss,
    warm_threshold,
)
from moebench.routers.routing import Choice, ChoiceScores, Hidden, Router, RouterState
from moebench.spec.case import OperatingPoint
from moebench.train.base import mean_over
from moebench.train.loop import POINT_STEPS
from moebench.train.optimiser import Optimiser, Schedule
from moebench.train.text import Windows

BETAS = (0.9, 0.999)
"""AdamW's own; the paper names no others."""

ADA_K_FLAGS = {
    "regularisation": "lambda, the price of an expert in each layer, in nats per token",
    "max_k": "action cap: most experts of a token; all if left out",
    "decode": "how the trained router decodes",
    "warm_start": "labels that allocators are first fitted to",
    "warm_steps": "steps of the warm start, within --tokens",
    "advantage": "in nats, or over its deviation, and lambda with it",
    "clip": "epsilon of the clipped ratio",
    "epochs": "updates on each batch",
    "gamma": "discount per layer below the last",
    "learning_rate": "of AdamW",
}
"""Options that have a flag, with their help."""


Passes = Callable[[Sequence[Router]], Tensor]
"""Loss of each predicted token, [batch, length], under the routers that it is given."""


class AllocatedModel(Protocol):
    """A trained model with an Ada-K router in each MoE layer: what the recipe knows of it."""

    @property
    def routers(self) -> Sequence[AdaKRouter]:
        """From the first MoE layer up; at the start all counts have the same chance."""
        ...

    @property
    def base_routers(self) -> Sequence[Router]:
        """The base's own top-k, from the first MoE layer up."""
        ...

    def passes(self, batch: Windows) -> Passes:
        """Forward passes of one batch, which share what no router changes."""
        ...

    def tensors(self) -> Mapping[str, Tensor]:
        """What a state of the training holds of the model, by name."""
        ...

    def frozen(self) -> Iterable[Tensor]:
        """Every weight that is no allocator's."""
        ...


class Recorder(Router):
    """An Ada-K router of one layer that routes by given counts and keeps what training reads."""

    inputs: Hidden
    seen: ChoiceScores
    counts: Counts

    def __init__(self, router: AdaKRouter, counts_of: Callable[[CountLogits], Counts]) -> None:
        super().__init__()
        self.router, self.counts_of = router, counts_of

    def scores(self, x: Hidden, state: RouterState = None) -> tuple[ChoiceScores, RouterState]:
        self.inputs = x
        self.seen, state = self.router.scores(x, state)
        return self.seen, state

    def choose(self, scores: ChoiceScores) -> Choice:
        self.counts = self.counts_of(self.router.allocator_logits(scores))
        return self.router.choose_counts(scores, self.counts)

    def impose(self, scores: ChoiceScores, point: OperatingPoint) -> None:
        self.router.impose(scores, point)

    def logits(self) -> CountLogits:
        """The allocator's logits on the stored inputs: one product, which has the gradient."""
        router, dtype = self.router, self.router.weight.dtype
        product = nn.functional.linear(self.inputs.to(dtype), router.allocator.to(dtype))
        return product.float() + router.count_bias


class AdaKRecipe:
    """Trains the allocators of a model; its steps start with the warm start."""

    def __init__(self, model: AllocatedModel, options: AdaKTraining, seed: int) -> None:
        if options.warm_steps % POINT_STEPS:
            raise ValueError(
                f"warm_steps: found {options.warm_steps}, expected a multiple of {POINT_STEPS}, "
                "the steps of a point of the curve"
            )
        self.model, self.options, self.seed = model, options, seed
        allocators = {
            f"routers.{layer}.allocator": router.allocator
            for layer, router in enumerate(model.routers)
        }
        for parameter in allocators.values():
            parameter.requires_grad_(True)
        self._device = model.routers[0].allocator.device  # where all layers are trained together
        rate, decay = options.learning_rate, options.weight_decay
        fall = Schedule(rate, num_steps=options.warm_steps, final_share=0.0)
        self.warm_optimiser = Optimiser(allocators, fall, decay, BETAS)
        self.optimiser = Optimiser(allocators, Schedule(rate), decay, BETAS)
        self._frozen = self._checksum()

    def step(self, batch: Windows, step: int) -> dict[str, float]:
        if self.options.warm_start != "none" and step < self.options.warm_steps:
            return self._warm_step(batch, step)
        with torch.no_grad():
            run = self.model.passes(batch)
            default = run(self.model.base_routers).flatten()
        home = self._device
        generator = step_generator(self.seed, step, home)
        sampled, layers = self._forward(
            run,
            lambda logits: decoded_counts(logits.to(home), "sampled", generator).to(logits.device),
        )
        advantages = (default - sampled).to(home)
        return {
            "loss": float(sampled.mean()),
            "base_loss": float(default.mean()),
            "reward": -float(sampled.mean()),
            "advantage_mean": float(advantages.mean()),
            "advantage_std": float(advantages.std()),
            **self._update(layers, advantages, step),
        }

    def tensors(self) -> dict[str, Tensor]:
        warm = self.warm_optimiser.tensors()
        return {
            **self.model.tensors(),
            **{name.replace("adam.", "adam.warm.", 1): t for name, t in warm.items()},
            **self.optimiser.tensors(),
        }

    def validation_loss(self, windows: Windows) -> float:
        assert self._checksum() == self._frozen, "a frozen weight of the base has changed"
        for router in self.model.routers:
            router.generator = step_generator(self.seed, -1, router.allocator.device)
        return mean_over(windows, lambda some: self.model.passes(some)(self.model.routers))

    @torch.no_grad()
    def _forward(
        self, run: Passes, counts_of: Callable[[CountLogits], Counts]
    ) -> tuple[Tensor, list[Recorder]]:
        """Loss of each predicted token, [tokens], and what each layer's router stored."""
        layers = [Recorder(router, counts_of) for router in self.model.routers]
        return run(layers).flatten(), layers

    def _own_k(self, logits: CountLogits) -> Counts:
        """The base's k for every token."""
        top_k = self.model.routers[0].model_top_k
        return torch.full((len(logits),), top_k, device=logits.device)

    def _warm_step(self, batch: Windows, step: int) -> dict[str, float]:
        """Fit the allocators to their labels on the inputs of a top-k forward."""
        losses, layers = self._forward(self.model.passes(batch), self._own_k)
        log_probabilities = allocations(layers)
        cross_entropy = warm_loss(log_probabilities, torch.cat(self._labels(layers)))
        cross_entropy.backward()  # type: ignore[no-untyped-call]
        self.warm_optimiser.step(step, None)
        return {
            "loss": float(losses.mean()),
            "cross_entropy": float(cross_entropy.detach()),
            **count_metrics(log_probabilities.detach()),
        }

    def _labels(self, layers: Sequence[Recorder]) -> list[Counts]:
        """The warm start's count of every token, a layer each."""
        if self.options.warm_start == "k-warm":
            return [layer.counts.to(self._device) for layer in layers]
        cumulated = [
            cumulated_probabilities(
                layer.seen[:, : layer.router.num_experts].to(self._device), layer.router.gate
            )
            for layer in layers
        ]
        p = warm_threshold(cumulated, self.model.routers[0].model_top_k)
        return [experts_to_reach(layer, p) for layer in cumulated]

    def _update(
        self, layers: Sequence[Recorder], advantages: Advantages, step: int
    ) -> dict[str, float]:
        """PPO's epochs on stored inputs and counts; what the allocators did before them."""
        options, counts = (
            self.options,
            torch.cat([layer.counts.to(self._device) for layer in layers]),
        )
        heard = signal(advantages, options.regularisation, options.advantage)
        of_layers = advantages_of_layers(heard.advantages, len(layers), options.gamma)
        metrics = {"drawn_k": float(counts.double().mean()), "clipped_share": 0.0}
        old: LogProbabilities | None = None
        for _ in range(options.epochs):
            log_probabilities = allocations(layers)
            new = probability_of_counts(log_probabilities, counts)
            if old is None:
                old = new.detach()
                metrics |= count_metrics(log_probabilities.detach())
            loss, clipped = policy_loss(new, old, of_layers, options.clip)
            price = heard.regularisation * expected_counts(log_probabilities).mean()
            torch.autograd.backward(loss + price)
            self.optimiser.step(step, None)
            metrics["clipped_share"] += float(clipped) / options.epochs
        return metrics

    def _checksum(self) -> str:
        """Hash of every weight that must not change."""
        digest = sha256()
        for tensor in self.model.frozen():
            flat = tensor.detach().cpu().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def step_generator(seed: int, step: int, device: torch.device) -> torch.Generator:
    """Random numbers of one step, a function of the seed and the step alone."""
    state = np.random.SeedSequence((seed, step + 1)).generate_state(1)[0]
    return torch.Generator(device).manual_seed(int(state))


def allocations(layers: Sequence[Recorder]) -> CountLogits:
    """Log-probabilities of all layers' counts, layer after layer: [layers * tokens, counts].

    Layers may be on several devices; the result is on that of the first.
    """
    home = layers[0].inputs.device
    return torch.cat([layer.logits().to(home) for layer in layers]).log_softmax(1)


def count_metrics(log_probabilities: CountLogits) -> dict[str, float]:
    """Means over tokens and layers: k as expected, as argmax and rounded; and the entropy.

    A k that falls as expected or as drawn may be exploration alone: a decoding saves what its own
    k says.
    """
    expected = expected_counts(log_probabilities)
    entropies = -(log_probabilities.exp() * log_probabilities).sum(1)
    ks = {
        "expected_k": expected,
        "argmax_k": log_probabilities.argmax(1).double() + 1,
        "rounded_mean_k": expected.round(),
        "entropy": entropies,
    }
    return {name: float(values.mean()) for name, values in ks.items()}
