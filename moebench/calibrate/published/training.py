"""Fit of trainers to published training: `calibrate --from` of a table with such points.

A handful of points of one source, so the prior says most of it. Widths come from points whose model
was left out, or their model and GPU: the wider of the two.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moebench import terminal
from moebench.calibrate.fit import most_probable
from moebench.calibrate.kernel_files import COMMAND, rounded, write_toml
from moebench.calibrate.published.prices import layer_of, trained_deployment
from moebench.calibrate.published.tables import TRAINING_RATE, Point, PublishedTable
from moebench.predict.arrays import Floats
from moebench.predict.serving.deployment import Deployment
from moebench.predict.serving.experts import ExpertsPrice
from moebench.predict.serving.no_router import baseline
from moebench.predict.serving.prices import KernelPrices, kernel_prices
from moebench.predict.serving.step import step_price
from moebench.predict.serving.trainer import (
    FACTS,
    FILE,
    TrainerKernels,
    TrainerParameters,
    trainer_kernels,
)
from moebench.predict.serving.training import trainer_experts_time

NOISE = 0.15
"""Log error of the form that the loss takes for granted: two GPUs of one instruction set and peak
differ by 20 % in published points."""
STUDENT = (6.31, 2.92, 2.35, 2.13, 2.02, 1.94, 1.89, 1.86, 1.83, 1.81)
"""95 % quantile of Student's distribution with 1 to 10 degrees of freedom."""
Label = Callable[[Point], str]
LABELS: tuple[Label, ...] = (lambda point: point.group, lambda point: point.model)


@dataclasses.dataclass(frozen=True)
class WholeStep:
    """A published point of a whole step of training."""

    point: Point
    deployment: Deployment
    prices: KernelPrices
    batch: int

    def predicted(self, parameters: TrainerParameters) -> float:
        """Seconds with some parameters."""
        training = dataclasses.replace(self.deployment.training, parameters=parameters)
        d = dataclasses.replace(self.deployment, training=training)
        router = baseline(d.model)
        step = step_price(d, self.prices, router, d.routed_by(router), [self.batch])
        return float(step.seconds[0])

    @property
    def work(self) -> float:
        """Tokens of the step."""
        return self.batch * self.deployment.context

    @property
    def measured(self) -> float:
        """Seconds."""
        return self.work / (self.point.value * self.point.scale)


@dataclasses.dataclass(frozen=True)
class ExpertsAlone:
    """A published time of one layer's experts in a trainer's kernels."""

    point: Point
    deployment: Deployment
    experts: ExpertsPrice
    kernels: TrainerKernels

    def predicted(self, parameters: TrainerParameters) -> float:
        """Seconds with some parameters."""
        d, kernels = self.deployment, self.kernels
        return float(trainer_experts_time(d, kernels, parameters, self.experts)[0])

    @property
    def measured(self) -> float:
        """Seconds."""
        return self.point.value * self.point.scale


Trained = WholeStep | ExpertsAlone


def trained_points(points: Iterable[Point]) -> list[Trained]:
    """Points of training that a shipped model and GPU fit."""
    found: list[Trained] = []
    for point in points:
        kernels = trainer_kernels(point.framework)
        try:
            if point.metric == TRAINING_RATE:
                deployment, batch = trained_deployment(point)
                found.append(WholeStep(point, deployment, kernel_prices(deployment), batch))
            elif point.metric == "moe_kernel_time" and kernels is not None:
                step = layer_of(point)
                if step.routed is not None:
                    found.append(ExpertsAlone(point, step.deployment, step.routed, kernels))
        except ValueError:
            continue
    return found


def fit_trainer(trained: Sequence[Trained]) -> TrainerParameters:
    """The most probable parameters given points; the prior's without any."""
    mean = np.log([fact["typical"] for fact in FACTS.values()])
    spread = np.array([fact["spread"] for fact in FACTS.values()])
    ceiling = np.log([fact["ceiling"] for fact in FACTS.values()])

    def parameters(logs: Floats) -> TrainerParameters:
        return TrainerParameters(*np.exp(logs).tolist())

    def errors(logs: Floats) -> Floats:
        return np.array([log_error(parameters(logs), one) for one in trained]) / NOISE

    options = {"x_scale": spread, "diff_step": 0.04}
    best = most_probable(errors, mean, spread, ceiling=ceiling, **options)  # type: ignore[arg-type]
    return parameters(best)


def log_error(parameters: TrainerParameters, one: Trained) -> float:
    """Logarithm of predicted over measured seconds."""
    return float(np.log(one.predicted(parameters) / one.measured))


def left_out_parameters(trained: Sequence[Trained], label: Label) -> list[TrainerParameters]:
    """Parameters for each point from a fit without any of its label."""
    fits = {
        name: fit_trainer([one for one in trained if label(one.point) != name])
        for name in {label(one.point) for one in trained}
    }
    return [fits[label(one.point)] for one in trained]


def left_out_training(points: Iterable[Point], label: Label) -> dict[int, float]:
    """Predicted over measured seconds by row, each from a fit without the point's label."""
    trained = trained_points(points)
    fits = left_out_parameters(trained, label)
    return {
        one.point.row: math.exp(log_error(fit, one)) for fit, one in zip(fits, trained, strict=True)
    }


def bounds_of(
    trained: Sequence[Trained], left_out: Sequence[Sequence[TrainerParameters]]
) -> tuple[float, float]:
    """90 % interval of log(measured / predicted) of left-out steps, as if around nothing.

    `left_out` are parameters for each point by several labels, of which the widest errors count.
    """
    widths = [0.0]
    for fits in left_out:
        errors = [
            log_error(fit, one)
            for fit, one in zip(fits, trained, strict=True)
            if isinstance(one, WholeStep)
        ]
        if errors:
            student = STUDENT[min(len(errors), len(STUDENT)) - 1]
            widths.append(student * float(np.sqrt(np.mean(np.square(errors)))))
    return -max(widths), max(widths)


def calibrate_trainers(tables: Sequence[PublishedTable], folder: Path) -> None:
    """Fit the trainer to published training and write training.toml; nothing without points."""
    trained = trained_points(point for table in tables for point in table.points)
    if not trained:
        return
    fit = fit_trainer(trained)
    terminal.show(_figures("fitted", trained, [fit] * len(trained)))
    left_out = [left_out_parameters(trained, label) for label in LABELS]
    for title, fits in zip(("model and GPU", "model"), left_out, strict=True):
        terminal.show(_figures(f"{title} left out", trained, fits))
    used = {one.point.id for one in trained}
    own = [table for table in tables if used & {point.id for point in table.points}]
    values: dict[str, Any] = {
        "note": f"Written by `{COMMAND}`; SI units. See moebench/predict/serving/trainer.py.",
        "source": ", ".join(f"{table.path.name} {table.sha256[:12]}" for table in own),
        "points": len(trained),
        "parameters": dataclasses.asdict(fit),
        "bounds": list(bounds_of(trained, left_out)),
    }
    terminal.show(write_toml(folder / FILE.name, rounded(values)))


def _figures(title: str, trained: Sequence[Trained], fits: Sequence[TrainerParameters]) -> str:
    found = [abs(np.expm1(log_error(fit, one))) for fit, one in zip(fits, trained, strict=True)]
    errors = ", ".join(f"{100 * error:.0f}" for error in found)
    return f"{title}, training: mean error {100 * np.mean(found):.0f} % of seconds ({errors})"
