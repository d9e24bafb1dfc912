"""The quality of a checkpoint in the Hugging Face layout, untouched and with a router applied."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moebench.compare.loss_intervals import window_interval
from moebench.files import text_of
from moebench.model.huggingface.apply import applied_router, apply_router, remove_router
from moebench.model.huggingface.blocks import described
from moebench.model.huggingface.dispatch import Placement, places_of
from moebench.model.huggingface.loading import load_model
from moebench.model.huggingface.router_file import load_router
from moebench.model.huggingface.tokens import Tokenise, tokeniser_of, transformers_tokeniser
from moebench.quality.answer import (
    CheckpointQuality,
    ModelLoss,
    TaskQuality,
    TextQuality,
    perplexity_of,
)
from moebench.quality.losses import MeanK, Windows, set_apart, set_means, window_losses, windows_of
from moebench.quality.tasks import (
    Scoring,
    TaskRequest,
    TaskScores,
    compared,
    lm_eval_version,
    task_scores,
)
from moebench.routers.policy import Policy
from moebench.spec.schema import encode


@dataclass(frozen=True)
class AskedRouter:
    """The router that is applied to a checkpoint."""

    name: str
    """Name of a router of moebench, or a file that `moebench.save_router` wrote."""
    options: Mapping[str, Any]
    mean_k: float | None
    """Experts a token in every layer, by thresholds that are set on the text; None: as it is."""


@dataclass(frozen=True)
class AskedText:
    """The text whose losses are measured."""

    path: Path
    window_tokens: int
    most_tokens: int


def checkpoint_quality(
    name: str,
    router: AskedRouter | None,
    text: AskedText | None,
    tasks: TaskRequest | None,
    place: Placement,
) -> CheckpointQuality:
    """Measure a checkpoint untouched and with the router, each on the text and on the tasks.

    Args:
        name: its folder, or its id on a hub.
        place: where it runs.
    """
    version = None if tasks is None else lm_eval_version()
    folder, model = load_model(name, place)
    spec = described(model)
    read = None
    if text is not None:
        sets_k = router is not None and router.mean_k is not None
        read = _read(text, tokeniser_of(folder, spec.vocab_size), sets_k)
    scoring = None if tasks is None else Scoring(transformers_tokeniser(folder), tasks)
    chosen = routed = None
    if router is not None:  # first, because it may be refused
        chosen = applied(model, router)
        if read is not None and read.calibration is not None and router.mean_k is not None:
            set_means(model, read.calibration, router.mean_k)
        routed = _measured(model, read, scoring)
        remove_router(model)
    own = _measured(model, read, scoring)
    tasks_found: tuple[TaskQuality, ...] = ()
    if own.scores is not None:
        tasks_found = compared(own.scores, None if routed is None else routed.scores)
    return CheckpointQuality(
        checkpoint=folder.name,
        family=spec.name,
        dtype=str(model.dtype).removeprefix("torch."),
        device=places_of(model),
        router=None if chosen is None else chosen.name,
        router_options={} if chosen is None else encode(chosen),
        text=None if read is None else _text_quality(read, own, routed),
        tasks=tasks_found,
        skipped_metrics=() if own.scores is None else own.scores.skipped,
        lm_eval=version,
    )


def applied(model: Any, router: AskedRouter) -> Policy:
    """The router's policy, once it is in the model; refused where its losses would say nothing."""
    if router.name.endswith(".safetensors"):
        if router.options:
            raise ValueError(f"--option: only with a router's name; {router.name} holds its own")
        load_router(model, router.name)
    else:
        apply_router(model, router.name, **router.options)
    chosen = applied_router(model).policy
    if not chosen.is_causal:
        raise ValueError(
            f"--router: {chosen.name} chooses experts by the other tokens of a step, so that its "
            "losses would depend on how windows are batched"
        )
    return chosen


@dataclass(frozen=True, eq=False)
class _ReadText:
    """A text as windows of tokens."""

    name: str
    sha256: str
    windows: Windows
    """Those whose losses are measured."""
    calibration: Windows | None
    """Those that a mean k is set on; None: none is."""


def _read(text: AskedText, tokenise: Tokenise, sets_k: bool) -> _ReadText:
    data = text_of(text.path).encode()
    ids = tokenise(data).ids
    windows = windows_of(ids, text.window_tokens, text.most_tokens, str(text.path))
    calibration = None
    if sets_k:
        calibration, windows = set_apart(windows, str(text.path))
    return _ReadText(text.path.name, sha256(data).hexdigest(), windows, calibration)


@dataclass(frozen=True, eq=False)
class _Measured:
    """What one model did."""

    losses: NDArray[np.float64] | None
    """[windows]; None: no text was given."""
    mean_k: tuple[float, ...]
    """Mean experts a token of each MoE layer, on the text."""
    scores: TaskScores | None


def _measured(model: Any, read: _ReadText | None, scoring: Scoring | None) -> _Measured:
    """The losses and scores of a model as it is now."""
    losses = None
    with MeanK(model) as mean:
        if read is not None:
            losses = window_losses(model, read.windows)
    scores = None if scoring is None else task_scores(model, scoring)
    return _Measured(losses, mean.by_layer(), scores)


def _text_quality(read: _ReadText, own: _Measured, routed: _Measured | None) -> TextQuality:
    assert own.losses is not None
    second = None
    if routed is not None:
        assert routed.losses is not None
        second = routed.losses
    return TextQuality(
        text=read.name,
        text_sha256=read.sha256,
        num_windows=len(read.windows),
        window_tokens=read.windows.shape[1] - 1,
        num_calibration_windows=0 if read.calibration is None else len(read.calibration),
        base=_model_loss(own.losses, own.mean_k),
        routed=None if second is None or routed is None else _model_loss(second, routed.mean_k),
        over_base_nats_per_token=None if second is None else window_interval(second - own.losses),
    )


def _model_loss(losses: NDArray[np.float64], mean_k: tuple[float, ...]) -> ModelLoss:
    found = window_interval(losses)
    return ModelLoss(found, perplexity_of(found), float(np.mean(mean_k)), mean_k)
