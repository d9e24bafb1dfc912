"""The quality of a checkpoint: losses and scores, untouched and with a router, with intervals.

Both models read the same windows of a text and the same samples of a task, so that differences are
taken one by one: their interval is narrower than that of either model. An interval of 95 % covers
other windows or samples of the same text or task, not other texts.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moebench.records.quality import SignedInterval
from moebench.terminal import text_table


@dataclass(frozen=True)
class ModelLoss:
    """The loss of one model on a text."""

    nats_per_token: SignedInterval
    """Mean of -log p of the next token."""
    perplexity: SignedInterval
    """exp of that mean."""
    mean_k: float
    """Experts a token, mean over MoE layers."""
    mean_k_by_layer: tuple[float, ...]


@dataclass(frozen=True)
class TextQuality:
    """The losses of both models on the same windows of a text."""

    text: str
    text_sha256: str
    num_windows: int
    window_tokens: int
    """Tokens of a window, each of which is predicted from those before it."""
    num_calibration_windows: int
    """Further windows, not evaluated, on which the router's mean k was set; 0: it was not set."""
    base: ModelLoss
    """The untouched model."""
    routed: ModelLoss | None
    """The model with the router; None: none was given."""
    over_base_nats_per_token: SignedInterval | None
    """The routed model's loss less the untouched one's, window by window; negative is better."""


@dataclass(frozen=True)
class TaskQuality:
    """The scores of both models on the same samples of a task of lm_eval."""

    task: str
    metric: str
    filter_name: str
    """Which of the task's ways to read an answer the metric scores."""
    higher_is_better: bool | None
    """None: lm_eval does not say."""
    num_samples: int
    base: SignedInterval
    """Mean over samples of the untouched model's scores."""
    routed: SignedInterval | None
    """Mean over samples of the routed model's scores; None: no router was given."""
    over_base: SignedInterval | None
    """The routed model's score less the untouched one's, sample by sample."""


@dataclass(frozen=True)
class CheckpointQuality:
    """What a router changes in what a checkpoint predicts."""

    checkpoint: str
    family: str
    dtype: str
    device: str
    router: str | None
    router_options: Mapping[str, Any]
    text: TextQuality | None
    tasks: tuple[TaskQuality, ...]
    skipped_metrics: tuple[str, ...]
    """Metrics of the tasks that are no mean of one number a sample, and cannot be paired."""
    lm_eval: str | None
    """Version of lm_eval; None: no task was asked for."""


def perplexity_of(loss: SignedInterval) -> SignedInterval:
    """The exponential of a loss and of the ends of its interval."""
    low, high = (None if end is None else math.exp(end) for end in (loss.low, loss.high))
    return SignedInterval(math.exp(loss.value), low, high, loss.missing)


def table(quality: CheckpointQuality) -> str:
    """The answer for people: a line a model for the text, a line a metric for the tasks."""
    q = quality
    lines = [f"{q.checkpoint} ({q.family}), {q.dtype} on {q.device}; intervals of 95 %"]
    if q.text is not None:
        lines += ["", *_text_lines(q.text, q.router)]
    if q.tasks:
        rows = [
            (
                f"{t.task}, {t.metric}"
                + ("" if t.filter_name == "none" else f" ({t.filter_name})"),
                f"{t.num_samples:,}",
                _shown(t.base),
                *(("", "") if not t.routed else (_shown(t.routed), _shown(t.over_base, "+"))),
            )
            for t in q.tasks
        ]
        titles = ("task", "samples", "untouched", q.router or "", "difference" if q.router else "")
        lines += ["", text_table(titles, rows)]
    lines += [f"{name}: no number a sample, not compared" for name in q.skipped_metrics]
    return "\n".join(lines)


def _text_lines(t: TextQuality, router: str | None) -> list[str]:
    sizes = f"{t.text}: {t.num_windows} windows of {t.window_tokens} tokens"
    if t.num_calibration_windows:
        sizes += f"; mean k set on {t.num_calibration_windows} others"
    rows = [
        (
            name,
            f"{model.mean_k:.3f}",
            _shown(model.nats_per_token),
            _shown(model.perplexity),
            "" if name == "untouched" else _shown(t.over_base_nats_per_token, "+"),
        )
        for name, model in (("untouched", t.base), (router or "", t.routed))
        if model is not None
    ]
    titles = ("model", "mean k", "nats a token", "perplexity", "difference in nats")
    return [sizes, text_table(titles, rows)]


def _shown(found: SignedInterval | None, sign: str = "") -> str:
    if found is None:
        return ""
    if found.low is None:
        return f"{found.value:{sign}.4f} ({found.missing})"
    return f"{found.value:{sign}.4f} ({found.low:{sign}.4f} to {found.high:{sign}.4f})"
