"""The quality of a setting, and what its router does with the text."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from moebench.compare.loss_intervals import text_loss
from moebench.records.quality import Quality, ShiftedLoss, TextLoss
from moebench.records.router_use import ColouredText, GainSplit, RouterUse
from moebench.suite.pareto.settings import Ready, random_routers
from moebench.train.base import Network
from moebench.train.diversity import expert_cosines
from moebench.train.equal_k import EqualK
from moebench.train.quality import BATCH_WINDOWS, Evaluation, evaluate
from moebench.train.router_use import ClassifiedWindows, coloured_text, router_use
from moebench.train.text import Part, Text, Windows
from moebench.train.token_classes import CLASSES, text_kind, token_classes

COSINE_WINDOWS = 8
"""Windows on which all experts run, for the cosine of their outputs."""
DECIMALS = 6
"""Of a window's mean loss in a record: a millionth of a nat, far below any interval."""


@dataclass(frozen=True, eq=False)
class Shifted:
    """A text of another domain, and what the base loses on its windows."""

    text: Text
    windows: Windows
    base_losses: NDArray[np.float64] | None = None
    """Of each window; None while the base itself is evaluated."""

    def loss(self, ready: Ready, batch: int, seeds: tuple[int, ...]) -> ShiftedLoss:
        """What a setting loses there, and the experts that it runs."""
        found = [_evaluated(network, self.windows, batch) for network in ready.networks]
        losses: NDArray[np.float64] = np.stack([each.window_losses for each in found])
        return ShiftedLoss(
            self.text.name,
            self.text.sha256,
            text_loss(losses, self.base_losses, seeds),
            len(self.windows),
            tuple(float(each.mean_k.mean()) for each in found),
        )

    def beside(self, base: Network) -> Self:
        """The same with the losses of the base."""
        losses = _evaluated(base, self.windows, BATCH_WINDOWS).window_losses
        return replace(self, base_losses=losses)


@dataclass(frozen=True, eq=False)
class Ground:
    """The text that every setting is evaluated on, and the base's evaluations on it."""

    text: Text
    windows: dict[Part, Windows]
    stream: Windows
    """Windows of text for training, on which mean k are set."""
    base: dict[Part, Evaluation] | None = None
    """None while the base itself is evaluated."""
    shifted: Shifted | None = None

    @cached_property
    def classified(self) -> ClassifiedWindows:
        """Classes of the bytes of the test windows."""
        kind = text_kind(self.text.name)
        data = bytes(self.text.parts["test"].tolist())
        count, length = len(self.windows["test"]), self.windows["test"].shape[1] - 1
        starts = self.text.starts("test", count)
        return ClassifiedWindows.of(CLASSES[kind], token_classes(data, kind), starts, length)


@dataclass(frozen=True, eq=False)
class Found:
    """What an evaluation of a setting found."""

    quality: Quality
    use: RouterUse
    mean_k: tuple[float, ...]
    """By seed."""
    test_losses: tuple[tuple[float, ...], ...]
    """Mean loss of each window, [seeds][windows]."""
    text: ColouredText | None
    evaluations: dict[Part, Evaluation]
    """Of the first seed."""


def evaluate_setting(ready: Ready, ground: Ground, base_tokens: int) -> Found:
    """Evaluate the networks of a setting, one a seed, on validation and test text."""
    batch = int(str(ready.setting.options.get("batch", BATCH_WINDOWS)))
    evaluations: dict[Part, list[Evaluation]] = {"validation": [], "test": []}
    for network in ready.networks:
        for part, found in evaluations.items():
            found.append(_evaluated(network, ground.windows[part], batch))
    first = {part: found[0] for part, found in evaluations.items()}
    seeds = tuple(each.manifest.seed for each in ready.trained) or (1,)
    quality = Quality(
        _text_loss(evaluations["validation"], ground, "validation", seeds),
        _text_loss(evaluations["test"], ground, "test", seeds),
        num_windows=len(ground.windows["test"]),
        window_bytes=ground.windows["test"].shape[1] - 1,
        base_tokens=base_tokens,
        router_tokens=_router_tokens(ready),
        text=ground.text.name,
        text_sha256=ground.text.sha256,
        batch_windows=batch if first["test"].is_batch_aware else None,
        shifted=ground.shifted.loss(ready, batch, seeds) if ground.shifted else None,
    )
    network = ready.networks[0]
    cosines = expert_cosines(
        network.language_model,
        network.stack,
        ground.windows["test"][:COSINE_WINDOWS],
        network.experts,
    )
    difficulty = ground.base["test"] if ground.base else None
    use = router_use(first["test"], difficulty, ground.classified, cosines)
    varies = np.ptp(first["test"].k) > 0
    start = ground.text.starts("test", len(ground.windows["test"]))[0]
    gain, why = _gain(network, first["test"], ground) if varies else (None, "k is constant")
    return Found(
        quality,
        replace(use, gain=gain, gain_missing=why),
        tuple(float(each.mean_k.mean()) for each in evaluations["test"]),
        tuple(tuple(each.window_losses.round(DECIMALS).tolist()) for each in evaluations["test"]),
        coloured_text(first["test"], ground.windows["test"], 0, start) if varies else None,
        first,
    )


def _evaluated(network: Network, windows: Windows, batch: int) -> Evaluation:
    return evaluate(network.language_model, network.stack, windows, network.experts, batch)


def _text_loss(
    found: Sequence[Evaluation], ground: Ground, part: Part, seeds: tuple[int, ...]
) -> TextLoss:
    losses: NDArray[np.float64] = np.stack([each.window_losses for each in found])
    return text_loss(losses, ground.base[part].window_losses if ground.base else None, seeds)


def _router_tokens(ready: Ready) -> int:
    """Tokens that a router, or the whole model with it, was trained on after the base."""
    if not ready.trained or ready.setting.recipe == "base":
        return 0
    return ready.trained[0].manifest.tokens_done


def _gain(network: Network, own: Evaluation, ground: Ground) -> tuple[GainSplit | None, str | None]:
    """How much of a router's gain a fixed k per layer would have had, or why that is unknown."""
    try:
        routers = random_routers(network)
        equal = EqualK(network.language_model, routers, network.experts, ground.stream)
        return equal.gain(own, ground.windows["test"]), None
    except ValueError as error:
        return None, str(error)
