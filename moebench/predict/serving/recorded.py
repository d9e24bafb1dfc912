"""Loads of steps whose routing was recorded: of drawn steps of a trace, not of independent tokens.

A router that was traced loads what it was recorded to load. Another router of the model runs the
first experts of what was recorded, as many as its distribution of k says for each token, drawn
apart from the token. Steps of more sequences than a trace has are of independent tokens with the
trace's marginals. A layer gets the mean over the traced layers.
"""

import functools
from dataclasses import dataclass, replace

import numpy as np

from moebench.predict.arrays import Floats, Ints
from moebench.predict.kernels.loads import BLOCK_ROWS, Loads, expected_loads
from moebench.predict.serving.parallelism import Parallelism
from moebench.predict.serving.ranks import most_loaded_rank
from moebench.records.trace import Trace
from moebench.records.trace_steps import (
    DRAWN_TOKENS,
    Domains,
    StepShape,
    drawn_steps,
    independent_experts,
    most_sequences,
    step_counts,
)
from moebench.routers.policy import Policy
from moebench.spec.case import OperatingPoint
from moebench.spec.load import ExpertLoad

SEED = 0


@dataclass(frozen=True, eq=False)
class RecordedLoad:
    """Mean load over drawn steps and layers."""

    load: ExpertLoad
    """Load of the whole layer, all ranks together."""
    local: Floats
    """[experts of the rank] assignments on the rank that has the most of them in a step."""
    loads: Loads
    """That rank's, as one case."""


@dataclass(frozen=True, eq=False)
class RecordedRouting:
    """Traces of one model, which say how its routers load experts."""

    traces: tuple[Trace, ...]
    domains: Domains = "mixed"
    is_independent: bool = False
    """Tokens are independent with each layer's recorded marginals: for a comparison."""

    def trace_of(self, router: str) -> Trace:
        """The trace of a router, else that of the model's own, else the first."""
        by_router = {trace.header.router: trace for trace in reversed(self.traces)}
        return by_router.get(router) or by_router.get("top-k") or self.traces[0]

    def load(
        self,
        routing: tuple[Policy, OperatingPoint],
        step: StepShape,
        parallel: Parallelism,
    ) -> RecordedLoad:
        """What a step loads; a router whose choice depends on the batch is refused."""
        router, point = routing
        if not router.is_causal:
            raise ValueError(
                f"--trace: {router.name} chooses experts by the other tokens of a step, of which a "
                "trace says nothing"
            )
        if parallel.redundant_experts:
            raise ValueError("--redundant-experts: not beside --trace")
        trace = self.trace_of(router.name)
        is_own = trace.header.router == router.name and point.origin == "traced"
        chances = None if is_own else point.k_distribution
        if self.is_independent or step.sequences > self.largest_step(step.new_tokens):
            return _independent_load(trace, step.num_tokens, chances, parallel)
        return _recorded_load(trace, (step, self.domains), chances, parallel.expert_parallel)

    def largest_step(self, new_tokens: int) -> int:
        """Sequences of the largest step that all traces can be drawn for."""
        return min(most_sequences(trace, new_tokens, self.domains) for trace in self.traces)


@functools.lru_cache(maxsize=1024)
def _recorded_load(
    trace: Trace,
    size: tuple[StepShape, Domains],
    k_distribution: tuple[float, ...] | None,
    groups: int,
) -> RecordedLoad:
    """Means over drawn steps and layers; in each the fullest group of experts counts."""
    # Equal seeds: all routers of a comparison are priced on the same steps.
    steps = drawn_steps(trace, *size, np.random.default_rng(SEED))
    return _of_steps(trace, steps, k_distribution, groups)


def _of_steps(
    trace: Trace, steps: Ints, k_distribution: tuple[float, ...] | None, groups: int
) -> RecordedLoad:
    found = step_counts(trace, steps, np.random.default_rng(SEED + 1), k_distribution)
    local = fullest_groups(found.counts, groups)
    local = local.reshape(-1, local.shape[2])
    tiles = [float((-(-local // rows)).sum(axis=1).mean()) for rows in BLOCK_ROWS]
    distinct, copies = float((local > 0).sum(axis=1).mean()), float(local.sum(axis=1).mean())
    of_expert = tuple(found.counts.mean(axis=(0, 1)).tolist())
    return RecordedLoad(
        ExpertLoad(of_expert, found.num_tokens, found.distinct),
        local.mean(axis=0),
        Loads(np.array([distinct]), np.array([distinct]), np.array([copies]), np.array([tiles])),
    )


@functools.lru_cache(maxsize=1024)
def _independent_load(
    trace: Trace, tokens: int, k_distribution: tuple[float, ...] | None, parallel: Parallelism
) -> RecordedLoad:
    """Means over layers of independent tokens with each layer's marginals."""
    marginals = _marginals(trace, k_distribution)
    distinct = independent_experts(marginals, tokens)
    if parallel.expert_parallel > 1 and tokens <= DRAWN_TOKENS:
        # Which rank has most is a matter of the draw.
        shape = StepShape(tokens).num_draws, tokens
        steps = np.random.default_rng(SEED).integers(trace.num_tokens, size=shape)
        found = _of_steps(trace, steps, k_distribution, parallel.expert_parallel)
        return replace(found, load=replace(found.load, distinct_experts=distinct))
    widest, local = -(-marginals.shape[1] // parallel.expert_parallel), []
    for k, own in zip(trace.k, tokens * marginals, strict=True):
        chances = k_distribution or tuple((np.bincount(k) / len(k)).tolist())
        fullest = most_loaded_rank(ExpertLoad(tuple(own.tolist()), tokens, 0.0), chances, parallel)
        local.append(np.pad(fullest, (0, widest - len(fullest))))
    each = expected_loads(local, [tokens] * len(local))
    arrays = (each.distinct, each.replayed, each.copies, each.tiles)
    return RecordedLoad(
        ExpertLoad(tuple((tokens * marginals.mean(axis=0)).tolist()), tokens, distinct),
        np.mean(local, axis=0),
        Loads(*(array.mean(axis=0, keepdims=True) for array in arrays)),
    )


@functools.lru_cache(maxsize=64)
def _marginals(trace: Trace, k_distribution: tuple[float, ...] | None) -> Floats:
    """[layers, experts] recorded marginals, or those with another distribution of k."""
    if k_distribution is None:
        return trace.marginals
    every = np.arange(trace.num_tokens)[:, None]
    some = np.random.default_rng(SEED).permutation(every)[:DRAWN_TOKENS]
    return step_counts(trace, some, np.random.default_rng(SEED + 1), k_distribution).marginals


def fullest_groups(counts: Ints, groups: int) -> Ints:
    """Counts of each step's group with the most assignments, [layers, steps, experts of a rank].

    Groups are consecutive experts, the first ones larger where the number does not divide; a
    smaller group ends with an expert of 0.
    """
    parts = np.array_split(counts, groups, axis=2)
    widest = parts[0].shape[2]
    padded = np.stack(
        [np.pad(part, ((0, 0), (0, 0), (0, widest - part.shape[2]))) for part in parts]
    )
    fullest = padded.sum(axis=3).argmax(axis=0)[None, ..., None]
    return np.asarray(np.take_along_axis(padded, fullest, axis=0)[0])
