"""Tasks of lm_eval on a model in memory: one number for each sample and metric.

lm_eval (EleutherAI's evaluation harness) is run by its Python interface: `simple_evaluate` on a
`HFLM` around the model. It is not among what moebench installs.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from moebench.compare.loss_intervals import window_interval
from moebench.experts.weights import not_installed
from moebench.quality.answer import TaskQuality

Key = tuple[str, str, str]
"""Task, metric, and filter of the answers."""


@dataclass(frozen=True)
class TaskRequest:
    """Which tasks are run, and how much of them."""

    names: tuple[str, ...]
    limit: int | None
    """Samples of each task at most; None: all."""
    batch_size: int
    folder: Path | None = None
    """Tasks of one's own, as YAML files of lm_eval; None: only those that it brings."""


@dataclass(frozen=True)
class Scoring:
    """Tasks, and the tokeniser of the model that runs them."""

    tokeniser: Any
    """Tokenizer, as transformers loaded it."""
    request: TaskRequest


@dataclass(frozen=True)
class TaskScores:
    """What lm_eval found for one model."""

    scores: Mapping[Key, Mapping[int, float]]
    """Scores of each metric, by the number of the sample."""
    higher_is_better: Mapping[Key, bool | None]
    skipped: tuple[str, ...]
    """Metrics that are no mean of one number a sample, as word_perplexity."""


def lm_eval_version() -> str:
    """The version of lm_eval; a ValueError where it is not installed."""
    if why := not_installed("lm_eval"):
        raise ValueError(f"--tasks: {why} (pip install 'moebench[eval]')")
    return metadata.version("lm_eval")


def task_scores(model: Any, scoring: Scoring) -> TaskScores:
    """Run tasks on a model as it is, with whatever router is applied to it."""
    request = scoring.request
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    try:
        found = lm_eval.simple_evaluate(
            model=HFLM(
                pretrained=model, tokenizer=scoring.tokeniser, batch_size=request.batch_size
            ),
            tasks=[*request.names],
            task_manager=TaskManager(include_path=request.folder),
            limit=request.limit,
            bootstrap_iters=0,  # its standard errors are not read
            log_samples=True,
        )
    except Exception as error:  # whatever that code and the network raise
        first = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"--tasks: lm_eval cannot run {', '.join(request.names)}: "
            f"{type(error).__name__}: {first}"
        ) from error
    return _scores(found)


def _scores(found: Mapping[str, Any]) -> TaskScores:
    """The scores of each sample; `found` is what `simple_evaluate` returns.

    Its results name a task's metrics as "acc,none": the metric and the filter. A sample holds its
    scores by metric, and belongs to one filter.
    """
    scores: dict[Key, dict[int, float]] = defaultdict(dict)
    higher: dict[Key, bool | None] = {}
    skipped = []
    for task, samples in found["samples"].items():
        better = found.get("higher_is_better", {}).get(task, {})
        for name in found["results"][task]:
            metric, comma, filter_name = name.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            key = task, metric, filter_name
            own = [s for s in samples if s.get("filter", filter_name) == filter_name]
            values = [sample.get(metric) for sample in own]
            if not own or not all(isinstance(value, int | float) for value in values):
                skipped.append(f"{task}, {metric}")
                continue
            scores[key] = {s["doc_id"]: float(s[metric]) for s in own}
            higher[key] = better.get(metric)
    return TaskScores(scores, higher, tuple(dict.fromkeys(skipped)))


def compared(base: TaskScores, routed: TaskScores | None) -> tuple[TaskQuality, ...]:
    """Scores of both models on the samples of each task, paired; None: no router was given."""
    found = []
    for key, own in base.scores.items():
        samples = sorted(own)
        first, second = _values(own, samples), None
        if routed is not None:
            assert sorted(routed.scores[key]) == samples, key
            second = _values(routed.scores[key], samples)
        found.append(
            TaskQuality(
                *key,
                higher_is_better=base.higher_is_better[key],
                num_samples=len(samples),
                base=window_interval(first),
                routed=None if second is None else window_interval(second),
                over_base=None if second is None else window_interval(second - first),
            )
        )
    return tuple(found)


def _values(scores: Mapping[int, float], samples: Sequence[int]) -> np.ndarray:
    return np.array([scores[sample] for sample in samples], np.float64)
