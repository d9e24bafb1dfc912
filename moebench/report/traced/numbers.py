"""What a trace's report shows in numbers: experts per token, skew, and distinct experts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moebench.records.trace import Trace
from moebench.records.trace_steps import (
    Domains,
    StepShape,
    drawn_steps,
    independent_experts,
    most_sequences,
    step_counts,
)

NUM_POSITIONS = 16
LARGEST_BATCH = 1024
SEED = 0


@dataclass(frozen=True)
class DistinctCurve:
    """Distinct experts of a layer against the tokens of a step; means over layers."""

    title: str
    tokens: tuple[int, ...]
    recorded: tuple[float, ...]
    error: tuple[float, ...]
    """Standard error of the mean over drawn steps."""
    independent: tuple[float, ...]
    """Expected for independent tokens with each layer's marginals over the whole trace."""


def distinct_curves(trace: Trace) -> tuple[DistinctCurve, ...]:
    """Decode steps of mixed texts and of one text, and consecutive tokens of a text."""
    ways: list[tuple[str, Domains]] = [("decode step", "mixed")]
    if len(trace.header.texts) > 1:
        ways = [("decode step, texts mixed", "mixed"), ("decode step, one text", "one")]
    curves = []
    for title, domains in ways:
        sizes = _doubled(most_sequences(trace, 1, domains))
        curves.append(_curve(trace, title, [StepShape(size) for size in sizes], domains))
    longest = int(trace.lengths.max())
    runs = [StepShape(1, size) for size in _doubled(longest)]
    if len(runs) > 1:
        curves.append(_curve(trace, "consecutive tokens of a text", runs, "mixed"))
    return tuple(curves)


def _doubled(most: int) -> list[int]:
    """1, 2, 4, ... up to `most` and to `LARGEST_BATCH`."""
    return [2**i for i in range(min(most, LARGEST_BATCH).bit_length())]


def _curve(trace: Trace, title: str, steps: Sequence[StepShape], domains: Domains) -> DistinctCurve:
    rng = np.random.default_rng(SEED)
    counts = [step_counts(trace, drawn_steps(trace, step, domains, rng), rng) for step in steps]
    return DistinctCurve(
        title,
        tuple(step.num_tokens for step in steps),
        tuple(each.distinct for each in counts),
        tuple(each.distinct_error for each in counts),
        tuple(independent_experts(trace.marginals, step.num_tokens) for step in steps),
    )


def mean_k(trace: Trace) -> NDArray[np.float64]:
    """[layers] mean experts of a token."""
    return np.asarray(trace.k.mean(axis=1, dtype=np.float64))


def k_by_class(trace: Trace) -> dict[str, tuple[float, NDArray[np.float64]]]:
    """For each class that occurs: its share of the tokens, and its mean k by layer, [layers]."""
    found = {}
    for index, name in enumerate(trace.header.classes):
        mine = trace.token_class == index
        if mine.any():
            found[name] = float(mine.mean()), trace.k[:, mine].mean(axis=1, dtype=np.float64)
    return found


def k_by_position(trace: Trace) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Middle of each of equal parts of the longest sequence, and mean k there, [layers, parts]."""
    parts = min(NUM_POSITIONS, int(trace.lengths.max()))
    width = int(trace.lengths.max()) / parts
    part = np.minimum((trace.position / width).astype(np.int64), parts - 1)
    tokens = np.bincount(part, minlength=parts)
    sums = np.array([np.bincount(part, own, parts) for own in trace.k])
    return np.asarray((np.arange(parts) + 0.5) * width, np.float64), sums / tokens


def busiest_quarter(trace: Trace) -> NDArray[np.float64]:
    """[layers] share of the assignments that the busiest quarter of the experts take."""
    counts = -np.sort(-trace.tokens_per_expert, axis=1)
    quarter = max(1, round(counts.shape[1] / 4))
    return np.asarray(counts[:, :quarter].sum(axis=1) / np.maximum(1, counts.sum(axis=1)))


def is_constant(trace: Trace) -> bool:
    """Whether every token of a layer runs as many experts as the others."""
    return bool((trace.k == trace.k[:, :1]).all())
