"""Recorded routing of running models: experts of each token, collected layer by layer."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moebench import terminal
from moebench.records.trace import Trace, TracedText, TraceHeader, expert_dtype
from moebench.routers.routing import Routing
from moebench.spec.model import ModelSpec
from moebench.trace.texts import TokenText, joined_classes

MOST_SLOTS = 255
BATCH_TOKENS = 4096
"""Tokens of one forward pass at most."""


@dataclass(frozen=True)
class Subject:
    """What is traced."""

    model: ModelSpec
    checkpoint: str
    checkpoint_sha256: str
    router: str
    router_options: Mapping[str, Any]
    layers: tuple[int, ...]
    """Layers whose routing a forward pass gives, in its order."""


@dataclass(frozen=True)
class Extent:
    """How much of each text is traced."""

    sequence_length: int
    most_tokens: int
    """Of each text."""


Forward = Callable[[Tensor], Sequence[NDArray[np.int64]]]
"""Runs sequences of token ids, [batch, length]: by layer the experts of each token,
[batch * length, slots], by falling weight, with `num_experts` in empty slots."""


def experts_by_weight(weights: Tensor, experts: Tensor, num_experts: int) -> NDArray[np.int64]:
    """Slots [tokens, slots] in the order of falling weight, those without an expert last.

    A slot whose expert is out of range is empty; its weight says nothing.
    """
    found = experts.cpu().numpy().astype(np.int64)
    is_empty = (found < 0) | (found >= num_experts)
    falling = np.where(is_empty, np.inf, -weights.detach().float().cpu().numpy())
    order = falling.argsort(axis=1, kind="stable")
    return np.asarray(np.take_along_axis(np.where(is_empty, num_experts, found), order, axis=1))


def routing_experts(routing: Routing) -> NDArray[np.int64]:
    """The experts of each token of a routing, by falling weight."""
    return experts_by_weight(*routing.slots, routing.num_experts)


def record(subject: Subject, texts: Sequence[TokenText], extent: Extent, forward: Forward) -> Trace:
    """The trace of some texts, run in batches of equally long sequences."""
    places = [
        (text, place)
        for text, own in enumerate(texts)
        for place in own.sequences(extent.sequence_length, extent.most_tokens)
    ]
    lengths = [place.stop - place.start for _, place in places]
    rows: list[Sequence[NDArray[np.int64]]] = []
    start, done, total = time.perf_counter(), 0, sum(lengths)
    with terminal.Bar(1.0) as bar:
        for batch in _batches(lengths):
            ids = np.stack([texts[text].ids[place] for text, place in (places[i] for i in batch)])
            rows.append(forward(torch.from_numpy(ids)))
            done += ids.size
            bar.expect((time.perf_counter() - start) * total / done)
            bar.tell(f"trace, {done:,} of {total:,} tokens")
    names, classes = joined_classes(texts)
    header = TraceHeader(
        model=subject.model,
        checkpoint=subject.checkpoint,
        checkpoint_sha256=subject.checkpoint_sha256,
        router=subject.router,
        router_options=subject.router_options,
        layers=subject.layers,
        texts=tuple(TracedText(text.name, text.sha256) for text in texts),
        classes=names,
    )
    experts = _joined(rows, subject.model.num_experts)
    return Trace(
        header,
        experts,
        np.less(experts, subject.model.num_experts).sum(axis=2, dtype=np.uint8),
        np.array(lengths, np.uint32),
        np.array([text for text, _ in places], np.uint8),
        np.concatenate([classes[text][place] for text, place in places]),
    )


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Consecutive sequences of one length, at most `BATCH_TOKENS` tokens of them at a time."""
    found: list[list[int]] = []
    for i, length in enumerate(lengths):
        fits = found and lengths[found[-1][0]] == length
        if fits and (len(found[-1]) + 1) * length <= BATCH_TOKENS:
            found[-1].append(i)
        else:
            found.append([i])
    return found


def _joined(
    rows: Sequence[Sequence[NDArray[np.int64]]], num_experts: int
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """All batches as one array [layers, tokens, slots], as wide as the token with most experts."""
    filled = [(layer < num_experts).sum(axis=1).max(initial=0) for each in rows for layer in each]
    slots = max(1, max(filled))
    if slots > MOST_SLOTS:
        raise ValueError(f"k: found a token of {slots} experts, expected at most {MOST_SLOTS}")

    def wide(layer: NDArray[np.int64]) -> NDArray[np.int64]:
        missing = max(0, slots - layer.shape[1])
        return np.pad(layer, ((0, 0), (0, missing)), constant_values=num_experts)[:, :slots]

    kind = expert_dtype(num_experts)
    batches = [np.stack([wide(layer).astype(kind) for layer in each]) for each in rows]
    return np.concatenate(batches, axis=1)
