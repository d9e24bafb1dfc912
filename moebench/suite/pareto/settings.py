"""The networks of a pareto run's settings: trained ones are loaded, rivals are set on the base."""

from dataclasses import dataclass
from pathlib import Path

import torch

from moebench.records.training import read_training
from moebench.routers.policy import policy
from moebench.routers.routing import build_routers
from moebench.routers.thresholds import ThresholdRouter
from moebench.routers.top_k.module import TopKRouter
from moebench.suite.pareto.plan import REGRESSION, ParetoPlan, Setting
from moebench.train.base import Network, load_network
from moebench.train.equal_k import EqualK
from moebench.train.layer_costs import layer_costs, static_k
from moebench.train.recipes import RECIPES, Asked, run_name
from moebench.train.regression_k import set_shared_mean
from moebench.train.run import Trained, load_trained
from moebench.train.text import Windows


@dataclass(frozen=True, eq=False)
class Ready:
    """A setting with its network, one a seed."""

    setting: Setting
    networks: tuple[Network, ...]
    trained: tuple[Trained, ...]
    """The trainings of the networks; empty where nothing was trained for it."""
    options: dict[str, object]
    """Options of the router as it runs."""


def folder_of(asked: Asked) -> Path:
    """Folder of a training."""
    return asked.out / run_name(asked, RECIPES[asked.recipe])


def is_finished(asked: Asked) -> bool:
    """Whether a training has ended with a result."""
    folder = folder_of(asked)
    if not (folder / "manifest.json").exists():
        return False
    return read_training(folder).status in ("done", "ended-early")


@dataclass(frozen=True, eq=False)
class Base:
    """The base of a run with the text on which rivals are set."""

    trained: Trained
    stream: Windows
    """Windows of text for training."""

    def network(self) -> Network:
        """A fresh copy of the base."""
        return load_network(self.trained)


def load_trained_setting(setting: Setting) -> Ready:
    """The networks of a setting whose trainings have all ended."""
    trained = tuple(load_trained(folder_of(asked)) for asked in setting.runs)
    networks = tuple(load_network(each) for each in trained)
    return Ready(setting, networks, trained, dict(trained[0].manifest.router_options))


def set_rival(setting: Setting, base: Base, plan: ParetoPlan) -> Ready:
    """A rival on the base, brought to its mean k on text for training."""
    options = {name: value for name, value in setting.options.items() if name != "batch"}
    if setting.router == REGRESSION:
        assert plan.regression is not None and setting.mean_k is not None
        trained = load_trained(folder_of(plan.regression))
        network = load_network(trained)
        set_shared_mean(network, base.stream, setting.mean_k)
        return Ready(setting, (network,), (trained,), options)
    network = base.network()
    if setting.router == "fixed-k" and setting.mean_k is not None:
        costs = layer_costs(network, base.stream)
        options["k"] = list(static_k(costs, setting.mean_k))
    rival = with_router(network, setting.router, options)
    if setting.mean_k is not None and setting.router != "fixed-k":
        routers = [router for router in rival.stack if isinstance(router, ThresholdRouter)]
        equal = EqualK(rival.language_model, routers, rival.experts, base.stream)
        equal.set_means([setting.mean_k] * len(routers))
    return Ready(setting, (rival,), (), options)


def with_router(base: Network, name: str, options: dict[str, object]) -> Network:
    """The base's network with another router that starts from the base's own."""
    model = base.language_model.model
    built = build_routers(policy(name, options), model, model.num_layers, torch.float32)
    for router, own in zip(built, base.stack, strict=True):
        if type(own) is not TopKRouter:
            raise ValueError(f"found a base with {type(own).__name__}, expected one with top-k")
        router.start_from_base(own.weight, None, own.bias)
    return Network(base.language_model, built).eval()


def random_routers(network: Network) -> list[ThresholdRouter]:
    """Routers that draw k at random and rank experts as the network's own routers do.

    A ValueError says which routers have no ranking of the base's kind.
    """
    model = network.language_model.model
    built = build_routers(policy("random-k"), model, model.num_layers, torch.float32)
    routers = [router for router in built if isinstance(router, ThresholdRouter)]
    for router, own in zip(routers, network.stack, strict=True):
        if not isinstance(own, TopKRouter) or own.weight is None:
            raise ValueError(f"{type(own).__name__} has no logits of its input alone")
        router.start_from_base(own.weight[: model.num_experts], None, own.bias)
    return routers
