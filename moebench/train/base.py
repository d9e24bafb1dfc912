"""The recipe of a language model with one router, trained as a whole: the base of all others."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from moebench.experts.backends import load_backend
from moebench.model.decoder import Start, StepMode
from moebench.model.language_model import LanguageModel, build_language_model, token_losses
from moebench.routers.auxiliary import auxiliary_loss
from moebench.routers.policy import policy
from moebench.routers.routing import Router, Routing, build_routers
from moebench.spec.model import ModelSpec
from moebench.train.checkpoint import restore
from moebench.train.optimiser import Optimiser, Schedule
from moebench.train.routing_metrics import routing_metrics
from moebench.train.run import Trained
from moebench.train.text import Windows

OF_TRAINING = ("adam.", "training.")
"""How names of tensors begin that belong to the training and not to the network."""
EVALUATION_BATCH = 32
"""Windows of one forward pass of an evaluation."""


@dataclass(frozen=True)
class BaseOptions:
    """How the weights of a whole model are trained."""

    learning_rate: float = 2e-3
    """Peak of the schedule, for AdamW at a width of 128."""
    warmup_steps: int = 100
    weight_decay: float = 0.1
    largest_norm: float = 1.0
    """Gradients of a larger norm are scaled down to it."""


class TrainedNetwork(Protocol):
    """A language model of which all weights are trained: what the recipe knows of it."""

    training: bool

    @property
    def stack(self) -> list[Router]:
        """The routers, one a MoE layer."""
        ...

    def losses(
        self, windows: Windows, routers: Sequence[Router] | None = None
    ) -> tuple[Tensor, list[Routing]]:
        """Loss of each predicted token, [batch, length], and the routing of each MoE layer."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What the optimiser changes, and what it does not, which requires no gradient."""
        ...

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """What a state of the training holds of it, by name."""
        ...

    def train(self, mode: bool = True) -> Any:
        """Switch between training and evaluation."""
        ...


class Network(nn.Module):
    """A language model with its routers, and the expert execution that trains it."""

    def __init__(self, language_model: LanguageModel, routers: Sequence[Router]) -> None:
        super().__init__()
        self.language_model = language_model
        self.routers = nn.ModuleList(routers)
        self.experts = load_backend("grouped", language_model.embedding.weight.device)

    def losses(
        self,
        windows: Windows,
        routers: Sequence[Router] | None = None,
        start: Start | None = None,
    ) -> tuple[Tensor, list[Routing]]:
        """Loss of each predicted token, [batch, length], and the routing of each layer.

        Args:
            routers: Run in place of the network's own.
            start: What `start` gave for these windows, if passes of other routers share it.
        """
        mine = routers if routers is not None else self.stack
        logits, routings = self.language_model(
            windows[:, :-1], mine, self.experts, StepMode("decoder"), start
        )
        return token_losses(logits, windows[:, 1:]), routings

    def start(self, windows: Windows) -> Start:
        """The part of a pass that no router changes: up to the router of the first layer."""
        model = self.language_model
        return model.decoder.start(model.embedding(windows[:, :-1]), StepMode("decoder"))

    @property
    def stack(self) -> list[Router]:
        """The routers, one a layer."""
        return [router for router in self.routers if isinstance(router, Router)]

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Parameters and buffers by name; what layers share comes once."""
        yield from self.named_parameters()
        yield from self.named_buffers()


def build_network(
    model: ModelSpec, router: str, options: Mapping[str, object], seed: int
) -> Network:
    """A network with random weights; those outside the routers depend on the seed alone."""
    language_model = build_language_model(model, seed=seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        routers = build_routers(policy(router, options), model, model.num_layers, torch.float32)
    return Network(language_model, routers)


def load_network(trained: Trained) -> Network:
    """The network that a training made, in evaluation mode."""
    m = trained.manifest
    network = build_network(m.model, m.router, m.router_options, m.seed)
    weights = dict(network.named_weights())
    found = {name: t for name, t in trained.tensors.items() if not name.startswith(OF_TRAINING)}
    restore(weights, found, trained.folder)
    return network.eval()


class BaseRecipe:
    """Trains all weights of a network on the language-model loss and the routers' own losses."""

    def __init__(self, network: TrainedNetwork, options: BaseOptions, num_steps: int) -> None:
        self.network, self.options = network, options
        network.train()
        schedule = Schedule(
            options.learning_rate, min(options.warmup_steps, num_steps // 10), num_steps
        )
        changed = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self.optimiser = Optimiser(changed, schedule, options.weight_decay)

    def step(self, batch: Windows, step: int) -> dict[str, float]:
        losses, routings = self.network.losses(batch)
        loss = losses.mean()
        auxiliary = [r.aux_loss for r in routings if r.aux_loss is not None]
        balance = auxiliary_loss(auxiliary) if auxiliary else loss.new_zeros(())
        torch.autograd.backward(loss + balance)
        norm = self.optimiser.step(step, self.options.largest_norm)
        return {
            "loss": float(loss.detach()),
            "auxiliary_loss": float(balance.detach()),
            "gradient_norm": norm,
            **routing_metrics(routings),
        }

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.network.named_weights()) | self.optimiser.tensors()

    def validation_loss(self, windows: Windows) -> float:
        return mean_loss(self.network, windows)


def mean_loss(
    network: TrainedNetwork, windows: Windows, routers: Sequence[Router] | None = None
) -> float:
    """Mean loss in nats per token over windows, in evaluation mode."""
    was_training = network.training
    network.train(False)
    mean = mean_over(windows, lambda some: network.losses(some, routers)[0])
    network.train(was_training)
    return mean


@torch.no_grad()
def mean_over(windows: Windows, losses: Callable[[Windows], Tensor]) -> float:
    """Mean over windows of the losses of their predicted tokens, some windows at a time."""
    total = 0.0
    for first in range(0, len(windows), EVALUATION_BATCH):
        total += float(losses(windows[first : first + EVALUATION_BATCH]).double().sum())
    return total / windows[:, 1:].numel()
