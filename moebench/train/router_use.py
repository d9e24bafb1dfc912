"""What a router did with a text: the numbers of `moebench.records.router_use`, of an evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray

from moebench.compare.loss_intervals import rank_correlation, rank_correlation_interval
from moebench.records.router_use import (
    ColouredText,
    DistinctExperts,
    KAgainstLoss,
    LayerUse,
    RouterUse,
)
from moebench.spec.learned_file import correlation
from moebench.train.diversity import shared_information
from moebench.train.quality import Evaluation, spread_groups
from moebench.train.text import Windows

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Decode batches of the curve of distinct experts."""
NUM_POSITIONS = 16
NUM_LOSS_GROUPS = 10


@dataclass(frozen=True, eq=False)
class ClassifiedWindows:
    """The class of every byte of the windows that were evaluated."""

    names: tuple[str, ...]
    classes: Int[np.ndarray, "windows length"]
    """Index of the class of the byte whose state chooses experts."""

    @classmethod
    def of(
        cls, names: tuple[str, ...], classes: NDArray[np.uint8], starts: Sequence[int], length: int
    ) -> "ClassifiedWindows":
        """Those of the windows that start at `starts` in a part with these classes, [bytes]."""
        return cls(names, np.stack([classes[start : start + length] for start in starts]))


def router_use(
    evaluation: Evaluation,
    difficulty: Evaluation | None,
    classified: ClassifiedWindows | None,
    cosines: Sequence[float | None],
) -> RouterUse:
    """What a router did with a text's windows.

    Args:
        difficulty: Evaluation of the base on the same windows; None: the model's own losses.
        cosines: Between experts' outputs, by layer (`moebench.train.diversity`).
    """
    layers = [_layer_use(evaluation, i, classified, cosine) for i, cosine in enumerate(cosines)]
    shares = {}
    if classified is not None:
        counts = np.bincount(classified.classes.ravel(), minlength=len(classified.names))
        share_of = zip(classified.names, (counts / counts.sum()).tolist(), strict=True)
        shares = {name: share for name, share in share_of if share}
    against = _against_loss(evaluation, difficulty or evaluation)
    return RouterUse(
        num_tokens=evaluation.losses.size,
        mean_k=float(evaluation.mean_k.mean()),
        layers=tuple(layers),
        class_shares=shares,
        against_loss=against,
        against_loss_missing=None if against else "k is constant",
    )


def coloured_text(
    evaluation: Evaluation, windows: Windows, window: int, first_byte: int
) -> ColouredText:
    """One of the evaluated windows with the experts of each of its bytes."""
    data = bytes(windows[window, :-1].tolist())
    return ColouredText(
        text=data.decode("latin-1"),
        first_byte=first_byte,
        k=tuple(tuple(row.tolist()) for row in evaluation.k[:, window]),
        losses_nats=tuple(evaluation.losses[window].astype(float).round(4).tolist()),
        largest_k=int(evaluation.k.max()),
    )


def _layer_use(
    evaluation: Evaluation,
    layer: int,
    classified: ClassifiedWindows | None,
    cosine: float | None,
) -> LayerUse:
    k, visits, first = evaluation.k[layer], evaluation.visits[layer], evaluation.first
    num_experts = visits.shape[-1]
    assignments = visits.sum(axis=(0, 1))
    by_class = {}
    if classified is not None:
        for index, name in enumerate(classified.names):
            if (mine := classified.classes == index).any():
                by_class[name] = float(k[mine].mean())
    positions = np.array_split(k.mean(axis=0), min(NUM_POSITIONS, k.shape[1]))
    information = None
    if layer:
        information = shared_information(
            first[layer - 1].ravel(), first[layer].ravel(), num_experts + 1
        )
    return LayerUse(
        mean_k=float(k.mean()),
        k_histogram=tuple((np.bincount(k.ravel()) / k.size).tolist()),
        mean_k_by_class=by_class,
        mean_k_by_position=tuple(float(part.mean()) for part in positions),
        expert_shares=tuple((assignments / max(1, assignments.sum())).tolist()),
        distinct=_distinct(evaluation, layer),
        lag_correlation=correlation(k[:, :-1], k[:, 1:]),
        below_correlation=correlation(evaluation.k[layer - 1], k) if layer else None,
        below_information=information,
        expert_cosine=cosine,
    )


def _distinct(evaluation: Evaluation, layer: int) -> tuple[DistinctExperts, ...]:
    """Distinct experts of decode batches; of batch-aware routers in the batches they saw."""
    visits = evaluation.visits[layer]
    marginals = visits.mean(axis=(0, 1))
    batches = (evaluation.batch_windows,) if evaluation.is_batch_aware else BATCHES
    found = []
    for batch in batches:
        groups = [group for group in spread_groups(len(visits), batch) if len(group) == batch]
        if groups:
            touched = np.mean([visits[group].any(axis=0).sum(axis=-1).mean() for group in groups])
            independent = float((1 - (1 - marginals) ** batch).sum())
            found.append(DistinctExperts(batch, float(touched), independent))
    return tuple(found)


def _against_loss(evaluation: Evaluation, difficulty: Evaluation) -> KAgainstLoss | None:
    """Correlation of k with the loss, over windows and tokens; None where k is constant."""
    of_token = evaluation.k.sum(axis=0).astype(np.float64)
    of_window = of_token.mean(axis=1)
    if np.ptp(of_window) == 0 or len(of_window) < 4:
        return None
    losses = difficulty.window_losses
    groups = np.array_split(losses.argsort(kind="stable"), min(NUM_LOSS_GROUPS, len(losses)))
    layers = len(evaluation.k)
    return KAgainstLoss(
        rank_correlation_interval(of_window, losses),
        tuple(float(of_window[group].mean()) / layers for group in groups),
        rank_correlation(of_token.ravel(), difficulty.losses.ravel().astype(np.float64)),
    )
