"""Losses of a transformers model on the windows of a text, and the mean k of an applied router."""

import functools
import time
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import cross_entropy

from moebench import terminal
from moebench.model.huggingface.apply import applied_router
from moebench.model.huggingface.blocks import described, moe_blocks
from moebench.model.huggingface.dispatch import input_device
from moebench.model.huggingface.gates import PLACE, PluggedRouter
from moebench.routers.policy import known_policies
from moebench.routers.routing import Routing
from moebench.routers.threshold_policy import ThresholdPolicy
from moebench.routers.thresholds import ThresholdRouter

Windows = NDArray[np.int64]
"""Token ids, [windows, length + 1]: each but the first is a target."""
BATCH_TOKENS = 2048
"""Tokens of one forward pass at most: their logits over a large vocabulary take gigabytes."""
CALIBRATION_TOKENS = 4096
"""Tokens that a mean k is set on, in one forward pass."""


def windows_of(ids: NDArray[np.int64], length: int, most_tokens: int, name: str) -> Windows:
    """Windows of a text's tokens, evenly spread over it, which share no target.

    Args:
        most_tokens: targets of all windows together.
        name: of the text, for messages.
    """
    fitting = (len(ids) - 1) // length
    if fitting < 1:
        raise ValueError(
            f"{name}: found {len(ids)} tokens, expected at least {length + 1} for a window of "
            f"{length} and a target"
        )
    count = min(fitting, max(1, most_tokens // length))
    starts = [fitting * i // count * length for i in range(count)]
    return np.stack([ids[start : start + length + 1] for start in starts])


def set_apart(windows: Windows, name: str) -> tuple[Windows, Windows]:
    """Windows to set a mean k on, a fifth of all at most, and the others, to be evaluated."""
    count, length = len(windows), windows.shape[1] - 1
    if count < 2:
        raise ValueError(
            f"{name}: found {count} window of {length} tokens, expected at least 2: a mean k is "
            "set on windows that are not evaluated"
        )
    apart = min(max(1, count // 5), max(1, CALIBRATION_TOKENS // length))
    chosen = [count * i // apart for i in range(apart)]
    return windows[chosen], np.delete(windows, chosen, axis=0)


@torch.no_grad()
def window_losses(model: Any, windows: Windows) -> NDArray[np.float64]:
    """Mean loss of each window in nats a token, [windows]; logits are read as fp32."""
    size = max(1, BATCH_TOKENS // (windows.shape[1] - 1))
    found: list[NDArray[np.float64]] = []
    start = time.perf_counter()
    with terminal.Bar(1.0) as bar:
        for first in range(0, len(windows), size):
            ids = torch.from_numpy(windows[first : first + size]).to(input_device(model))
            logits = model(input_ids=ids[:, :-1], use_cache=False).logits
            targets = ids[:, 1:].to(logits.device)
            losses = cross_entropy(logits.float().transpose(1, 2), targets, reduction="none")
            found.append(losses.double().mean(dim=1).cpu().numpy())
            done = min(len(windows), first + size)
            bar.expect((time.perf_counter() - start) * len(windows) / done)
            bar.tell(f"losses, {done:,} of {len(windows):,} windows")
    return np.concatenate(found)


def plugged_routers(model: nn.Module) -> list[PluggedRouter]:
    """The routers that are applied to a model, in their places; none in an untouched model."""
    gates = [block.gate for block in moe_blocks(model)]
    return [cast(PluggedRouter, getattr(gate, PLACE)) for gate in gates if hasattr(gate, PLACE)]


class MeanK:
    """Counts the experts that tokens run, by MoE layer, while it is entered."""

    def __init__(self, model: nn.Module) -> None:
        places, layers = plugged_routers(model), len(moe_blocks(model))
        self._own_k = described(model).top_k
        self._assignments, self._tokens = [0] * layers, [0] * layers
        self._hooks = [
            place.register_forward_hook(functools.partial(self._count, layer))
            for layer, place in enumerate(places)
        ]

    def by_layer(self) -> tuple[float, ...]:
        """Mean experts a token of each layer; the model's own k where no router of ours ran."""
        pairs = zip(self._assignments, self._tokens, strict=True)
        return tuple(a / t if t else float(self._own_k) for a, t in pairs)

    def __enter__(self) -> "MeanK":
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _count(self, layer: int, _: nn.Module, __: Any, output: tuple[Any, Routing]) -> None:
        self._assignments[layer] += output[1].num_assignments
        self._tokens[layer] += output[1].num_tokens


@torch.no_grad()
def set_means(model: Any, windows: Windows, mean_k: float) -> None:
    """Set the thresholds of an applied router so that every layer runs `mean_k` experts a token.

    Each layer is set within one forward pass, from the lowest up: what it reads depends on the
    experts that run below it.

    Args:
        windows: [windows, length + 1], of which the last token is not run.
    """
    applied = applied_router(model)
    if not all(isinstance(router, ThresholdRouter) for router in applied.routers):
        kinds = {name for name, kind in known_policies().items() if _has_threshold(kind)}
        raise ValueError(
            f"--mean-k: found {applied.name}, which has no threshold to set, expected one of "
            f"{', '.join(sorted(kinds))}"
        )
    if getattr(applied.policy, "threshold", None) is not None:
        raise ValueError(
            f"--mean-k: found {applied.name} with a threshold in its options, expected one of both"
        )
    hooks = [
        place.register_forward_pre_hook(functools.partial(_set_mean, mean_k))
        for place in plugged_routers(model)
    ]
    try:
        model.base_model(
            input_ids=torch.from_numpy(windows[:, :-1]).to(input_device(model)), use_cache=False
        )
    finally:
        for hook in hooks:
            hook.remove()


def _has_threshold(kind: type) -> bool:
    return issubclass(kind, ThresholdPolicy)


def _set_mean(mean_k: float, place: nn.Module, inputs: Sequence[Any]) -> None:
    """Before a router runs, set its mean k on the tokens that it is about to route."""
    router = cast(ThresholdRouter, place.router)
    scores, _ = router.scores(inputs[0])
    router.set_mean(scores, mean_k)
