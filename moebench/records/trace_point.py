"""The operating point of a trace: its counts and experts, for what needs no more than those."""

from pathlib import Path

import numpy as np

from moebench.records.trace import Trace, read_trace
from moebench.spec.learned_file import correlation, learned_layers
from moebench.spec.learned_point import LearnedPoint


def load_traced(path: str) -> LearnedPoint:
    """The operating point of a trace's file, named as the file is."""
    return traced_point(read_trace(Path(path)), Path(path).name)


def traced_point(trace: Trace, name: str) -> LearnedPoint:
    """The operating point of a trace.

    Args:
        trace: of one router.
        name: how messages call it.
    """
    k, model = trace.k, trace.header.model
    inside = np.diff(trace.sequence) == 0
    lags = [correlation(own[:-1][inside], own[1:][inside]) for own in k]
    below = [None, *(correlation(k[i - 1], k[i]) for i in range(1, len(k)))]
    empty = [i for i, own in enumerate(k) if not own.any()]
    if empty:
        raise ValueError(
            f"trace:{name}: layer {trace.header.layers[empty[0]]}: found no token that runs an "
            "expert, expected a layer whose experts run"
        )
    return LearnedPoint(
        name=name,
        router=trace.header.router,
        source=trace.source,
        num_experts=model.num_experts,
        top_k=model.top_k,
        num_tokens=trace.num_tokens,
        text_sha256=trace.header.texts[0].sha256,
        layers=learned_layers(
            model.top_k,
            [np.bincount(own).tolist() for own in k],
            trace.tokens_per_expert.tolist(),
            (lags, below),
        ),
        origin="traced",
    )
