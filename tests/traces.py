"""Traces that tests make by hand or at random."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from moebench.records.trace import Trace, TracedText, TraceHeader, expert_dtype
from moebench.spec.model import ModelSpec, load_model


def small_model(num_experts: int = 8, top_k: int = 2, num_layers: int = 2) -> ModelSpec:
    """Mixtral with other experts and layers."""
    return replace(
        load_model("mixtral-8x7b"),
        name="small",
        num_experts=num_experts,
        top_k=top_k,
        num_layers=num_layers,
        total_parameters=0.0,
        active_parameters=0.0,
    )


def a_trace(
    experts: Sequence[Sequence[Sequence[int]]],
    lengths: Sequence[int],
    model: ModelSpec,
    text_of: Sequence[int] | None = None,
    router: str = "top-k",
) -> Trace:
    """A trace from the experts that each token runs in each layer, as lists of any length."""
    n = model.num_experts
    slots = max(len(token) for layer in experts for token in layer)
    table = [[[*token, *[n] * (slots - len(token))] for token in layer] for layer in experts]
    texts = text_of if text_of is not None else [0] * len(lengths)
    names = [TracedText(f"text-{i}", f"{i}" * 64) for i in range(max(texts) + 1)]
    tokens = sum(lengths)
    header = TraceHeader(
        model=model,
        checkpoint="by-hand",
        checkpoint_sha256=None,
        router=router,
        layers=tuple(range(len(experts))),
        texts=tuple(names),
        classes=("content word", "function word"),
    )
    return Trace(
        header,
        np.array(table, expert_dtype(n)),
        np.array([[len(token) for token in layer] for layer in experts], np.uint8),
        np.array(lengths, np.uint32),
        np.array(texts, np.uint8),
        np.arange(tokens).astype(np.uint8) % 2,
    )


def independent_trace(
    lengths: Sequence[int], model: ModelSpec, seed: int = 0, text_of: Sequence[int] | None = None
) -> Trace:
    """A trace whose tokens choose top_k experts independently, the first ones more often."""
    rng = np.random.default_rng(seed)
    shape = (model.num_layers, sum(lengths), model.num_experts)
    scores = rng.gumbel(size=shape) - np.log1p(np.arange(model.num_experts))
    experts = (-scores).argsort(axis=2)[..., : model.top_k]
    return a_trace(experts.tolist(), lengths, model, text_of)
