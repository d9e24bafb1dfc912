"""`--checkpoint PATH`: the layers of a checkpoint in place of a suite's random ones.

Its routers' weights are put into every router that has such weights; what a method adds to them
stays random, since its counts are imposed. A suite feeds layers with random hidden states. Over
them top-k routes as it does, and its experts' shares become the operating point of all routers,
unless a trace or a learned point says better.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch.nn.functional import rms_norm

from moebench.model.checkpoint.files import Checkpoint, open_checkpoint
from moebench.model.checkpoint.layers import (
    BaseGate,
    base_gates,
    check_layers,
    chosen_layers,
    identity,
    load_decoder,
    norm_weight,
)
from moebench.model.decoder import Decoder
from moebench.records.manifest import CheckpointUse
from moebench.records.results import Caveat
from moebench.routers.policy import policy
from moebench.routers.routing import Router, build_routers
from moebench.routers.top_k.module import TopKRouter
from moebench.spec.carried_point import LEAST_SHARE
from moebench.spec.case import OperatingPoint
from moebench.spec.model import ModelSpec, of_layers
from moebench.suite.source import SuiteSource
from moebench.suite.suite_file import DeviceKind, SuiteFile

SAME_NETWORK = (
    *("num_layers", "hidden_size", "intermediate_size", "num_experts", "top_k"),
    *("shared_intermediate_size", "gate"),
)
"""Fields in which a checkpoint that a paper's figures of a model hold for is that model."""
OWN_ROUTER = "top-k"
"""The router that a checkpoint has; its choices are imposed by nothing."""


@dataclass(frozen=True, eq=False)
class CheckpointLayers:
    """Layers of a checkpoint that a suite runs."""

    checkpoint: Checkpoint
    layers: tuple[int, ...]
    model: ModelSpec
    """The network of these layers alone."""
    is_free: bool
    """Whether top-k's own choices are the operating point, as no trace or point is given."""

    @property
    def use(self) -> CheckpointUse:
        """What a run's manifest says of it."""
        found = identity(self.checkpoint, self.layers)
        return CheckpointUse(self.checkpoint.name, found, self.layers)

    @cached_property
    def gates(self) -> tuple[BaseGate, ...]:
        """The checkpoint's own routers in these layers."""
        return base_gates(self.checkpoint, self.layers)

    def decoder(self, dtype: torch.dtype, device: torch.device) -> Decoder:
        """The layers, loaded."""
        return load_decoder(self.checkpoint, self.layers, dtype, device)

    @torch.inference_mode()
    def shares(self, num_tokens: int, seed: int) -> tuple[float, ...]:
        """Shares of the experts under top-k on random hidden states, the busiest first.

        Experts of two layers have nothing to do with one another: the mean is over their ranks.
        """
        routers = build_routers(policy(OWN_ROUTER), self.model, len(self.layers), torch.float32)
        generator = torch.Generator().manual_seed(seed)
        ranked = []
        for router, gate, layer in zip(routers, self.gates, self.layers, strict=True):
            take_over(router.eval(), gate)
            x = torch.randn(num_tokens, self.model.hidden_size, generator=generator)
            weight = norm_weight(self.checkpoint, layer).float()
            normed = rms_norm(x, weight.shape, weight, self.model.norm_epsilon)
            counts = router(normed)[0].tokens_per_expert.numpy()
            ranked.append(np.sort(counts)[::-1] / counts.sum())
        return tuple(np.maximum(np.mean(ranked, axis=0), LEAST_SHARE).tolist())

    def routed(
        self, points: Sequence[OperatingPoint], num_tokens: int, seed: int
    ) -> tuple[OperatingPoint, ...]:
        """Operating points with the experts that the checkpoint's top-k runs."""
        shares = self.shares(num_tokens, seed)
        return tuple(replace(point, skew=0.0, expert_shares=shares) for point in points)

    @property
    def caveats(self) -> tuple[Caveat, ...]:
        """Why numbers of these layers are to be read with care."""
        if not self.is_free:
            return ()
        names = ", ".join(map(str, self.layers))
        return (
            Caveat(
                "random-hidden-states",
                f"layers {names} of {self.checkpoint.name}: its weights and routers, fed with "
                "random hidden states",
                "tokens of a text may agree more in their experts, or less: distinct experts and "
                "skew are those of this stream",
                "record its routing of a text and give it (--operating-point trace:FILE)",
            ),
        )


def asked_checkpoint(
    options: argparse.Namespace, source: SuiteSource, file: SuiteFile, kind: DeviceKind
) -> CheckpointLayers:
    """The layers of the checkpoint that a command line asks for, checked before anything runs.

    A run that is taken up has the network that it began with.
    """
    checkpoint = open_checkpoint(options.checkpoint)
    if not checkpoint.model.num_moe_layers:
        raise ValueError(f"{checkpoint.folder}: found a dense model, expected layers with experts")
    if file.scale != 1:
        raise ValueError(
            f"{source.where}: scale: found {file.scale}, expected 1 beside --checkpoint, whose "
            "weights have widths of their own"
        )
    plan = file.cpu if kind == "cpu" else file.gpu
    layers = chosen_layers(checkpoint, asked_layers(options.layers), plan.num_layers)
    check_layers(checkpoint, layers)
    kept = source.models.get(file.model)
    model = kept or of_layers(_named(checkpoint.model, source.model(file.model)), layers)
    return CheckpointLayers(checkpoint, layers, model, options.operating_point is None)


def _named(model: ModelSpec, described: ModelSpec) -> ModelSpec:
    """A checkpoint's network, under the name of the suite's model too where it is that model.

    Figures that papers publish for a model are found by the first part of its name.
    """
    if any(getattr(model, name) != getattr(described, name) for name in SAME_NETWORK):
        return model
    return replace(model, name=f"{described.published_name}/{model.name}")


def asked_layers(text: str | None) -> tuple[int, ...] | None:
    """Numbers of layers such as "0,15,31"; None where none are asked for."""
    if text is None:
        return None
    try:
        return tuple(map(int, text.split(",")))
    except ValueError as error:
        raise ValueError(
            f"--layers: found {text!r}, expected layers of the checkpoint such as 0,15,31"
        ) from error


def take_over(router: Router, gate: BaseGate) -> None:
    """Put the checkpoint's weights into a router that has such; what a method adds stays.

    A method's own start on a base would run the base's k for every token, from which no other
    count can be imposed.
    """
    if isinstance(router, TopKRouter) and router.weight is not None:
        TopKRouter.start_from_base(router, *gate)
