"""Steps drawn from a trace as traffic would draw them, and the experts that they touch.

A decode step of B sequences takes one token of each of B different sequences. A prefill step takes
runs of consecutive tokens of a text that do not overlap. The sequences of a step are of one text,
drawn anew for each step, or of all texts mixed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from moebench.records.trace import Trace

Ints = NDArray[np.int64]
Domains = Literal["mixed", "one"]
"""Sequences of a step: of all texts of the trace, or of one."""
DRAWN_TOKENS = 1 << 14
"""Tokens drawn in all, for each size of a step."""
MOST_DRAWS, FEWEST_DRAWS = 1 << 12, 16


@dataclass(frozen=True)
class StepShape:
    """Size of a step."""

    sequences: int
    new_tokens: int = 1
    """Consecutive tokens of each sequence; 1: a decode step."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the step."""
        return self.sequences * self.new_tokens

    @property
    def num_draws(self) -> int:
        """Steps of this size to draw."""
        return min(MOST_DRAWS, max(FEWEST_DRAWS, DRAWN_TOKENS // self.num_tokens))


def most_sequences(trace: Trace, new_tokens: int, domains: Domains) -> int:
    """The largest step that a trace has different sequences for, whichever text is drawn.

    Args:
        trace: what was recorded.
        new_tokens: of each sequence.
        domains: whether a step mixes texts.
    """
    each = [_places(trace, text, new_tokens) for text in range(len(trace.header.texts))]
    return sum(each) if domains == "mixed" else min(each)


def _places(trace: Trace, text: int, new_tokens: int) -> int:
    """Different sequences of a text, or runs of tokens that do not overlap."""
    own = trace.lengths[trace.text_of == text]
    return len(own) if new_tokens == 1 else int(own.sum()) // new_tokens


def drawn_steps(trace: Trace, step: StepShape, domains: Domains, rng: np.random.Generator) -> Ints:
    """Tokens of random steps, [steps, tokens], as indices into the trace.

    A step of more sequences than the trace has is refused.
    """
    most = most_sequences(trace, step.new_tokens, domains)
    if step.sequences > most:
        raise ValueError(
            f"sequences: found {step.sequences}, expected at most {most}, which is what the trace "
            f"has of {step.new_tokens} tokens"
        )
    if step.new_tokens == 1:
        return _decode_steps(trace, step, domains, rng)
    return _prefill_steps(trace, step, domains, rng)


def _decode_steps(
    trace: Trace, step: StepShape, domains: Domains, rng: np.random.Generator
) -> Ints:
    """One token of each of the step's sequences, any token of it."""
    order = _some(rng, trace.text_of, step, domains)
    inside = (rng.random(order.shape) * trace.lengths[order]).astype(np.int64)
    return np.asarray(trace.starts[order] + inside)


def _prefill_steps(
    trace: Trace, step: StepShape, domains: Domains, rng: np.random.Generator
) -> Ints:
    """Runs of consecutive tokens: each text is cut into runs from a random token on."""
    firsts, texts = [], []
    for text in range(len(trace.header.texts)):
        own = np.flatnonzero(trace.text_of == text)
        start = trace.starts[own[0]]
        tokens, runs = int(trace.lengths[own].sum()), _places(trace, text, step.new_tokens)
        room = tokens - runs * step.new_tokens
        firsts.append(start + rng.integers(room + 1) + step.new_tokens * np.arange(runs))
        texts.append(np.full(runs, text))
    chosen = _some(rng, np.concatenate(texts), step, domains)
    tokens_of = np.concatenate(firsts)[chosen][..., None] + np.arange(step.new_tokens)
    return np.asarray(tokens_of.reshape(len(chosen), -1))


def _some(
    rng: np.random.Generator, places: NDArray[np.integer], step: StepShape, domains: Domains
) -> Ints:
    """Different places of each step, [steps, sequences].

    Args:
        rng: what draws.
        places: text of each place that a sequence of the step may take.
        step: how many.
        domains: whether a step mixes texts.
    """
    if domains == "mixed":
        rows = [
            rng.choice(len(places), step.sequences, replace=False) for _ in range(step.num_draws)
        ]
        return np.array(rows)
    own = [np.flatnonzero(places == text) for text in range(int(places.max()) + 1)]
    texts = places[rng.integers(len(places), size=step.num_draws)]
    return np.array([rng.choice(own[text], step.sequences, replace=False) for text in texts])


@dataclass(frozen=True, eq=False)
class StepCounts:
    """Assignments of each expert in the steps that were drawn."""

    counts: Ints
    """[layers, steps, experts]"""
    num_tokens: int
    """Tokens of a step."""

    @property
    def distinct(self) -> float:
        """Mean distinct experts that a step touches in a layer, as recorded."""
        return float((self.counts > 0).sum(axis=2).mean())

    @property
    def distinct_error(self) -> float:
        """Standard error of `distinct` over steps."""
        of_step = (self.counts > 0).sum(axis=2).mean(axis=0)
        return float(of_step.std() / max(1, len(of_step) - 1) ** 0.5)

    @property
    def marginals(self) -> NDArray[np.float64]:
        """[layers, experts] probability that a token of these steps runs each expert."""
        return np.asarray(self.counts.mean(axis=1) / self.num_tokens)

    @property
    def independent(self) -> float:
        """Mean distinct experts if tokens were independent, with each layer's own marginals."""
        return independent_experts(self.marginals, self.num_tokens)


def independent_experts(marginals: NDArray[np.float64], num_tokens: int) -> float:
    """Mean over layers of the distinct experts of independent tokens, from [layers, experts]."""
    return float((1 - (1 - marginals) ** num_tokens).sum(axis=1).mean())


def step_counts(
    trace: Trace,
    steps: Ints,
    rng: np.random.Generator,
    k_distribution: Sequence[float] | None = None,
) -> StepCounts:
    """What drawn steps, [steps, tokens], load.

    With a `k_distribution` each token runs another number of experts, drawn from these chances of
    0, 1, 2, ...: the first ones of those that it ran, and where it ran fewer, further ones drawn
    from the layer's marginals.
    """
    n = trace.header.model.num_experts
    counts = np.empty((len(trace.experts), len(steps), n), np.int64)
    offsets = (n + 1) * np.arange(len(steps))[:, None, None]
    for layer, experts in enumerate(trace.experts):
        rows = experts[steps].astype(np.int64)
        if k_distribution is not None:
            asked = rng.choice(len(k_distribution), steps.shape, p=k_distribution)
            rows = _with_k(rows, asked, trace.marginals[layer], rng)
        found = np.bincount((rows + offsets).ravel(), minlength=len(steps) * (n + 1))
        counts[layer] = found.reshape(len(steps), n + 1)[:, :n]
    return StepCounts(counts, steps.shape[1])


def _with_k(
    rows: Ints, asked: Ints, marginals: NDArray[np.float64], rng: np.random.Generator
) -> Ints:
    """Experts [steps, tokens, slots] of tokens that run `asked` experts in place of their own."""
    n, slots = len(marginals), max(rows.shape[2], int(asked.max(initial=0)))
    rows = np.pad(rows, ((0, 0), (0, 0), (0, slots - rows.shape[2])), constant_values=n)
    own = (rows < n).sum(axis=2)
    place = np.nonzero(asked > own)
    if len(place[0]):
        # The largest of log p plus Gumbel noise are a draw in proportion to p, one after another.
        with np.errstate(divide="ignore"):
            scores = np.log(marginals) + rng.gumbel(size=(len(place[0]), n))
        scores = np.maximum(scores, -1e9)
        padded = np.pad(scores, ((0, 0), (0, 1)))
        np.put_along_axis(padded, rows[place], -np.inf, axis=1)
        further = np.argsort(-padded[:, :n], axis=1)[:, :slots]
        taken = np.arange(slots) - own[place][:, None]
        filled = np.take_along_axis(further, np.maximum(taken, 0), axis=1)
        rows[place] = np.where(taken >= 0, filled, rows[place])
    return np.where(np.arange(slots) < asked[..., None], rows, n)
