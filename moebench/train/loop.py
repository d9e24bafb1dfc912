"""The loop of every training: batches, the loss curve, validation, checkpoints, and its ends.

A recipe says what one step does. The loop saves all that a recipe changes, and a step's batch and
random numbers follow from the seed and the step's number: a training that was killed and taken up
again goes through the same states as one that was not.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from moebench import terminal
from moebench.records.training import CurvePoint
from moebench.train.run import TrainingRun
from moebench.train.text import Text, Windows

POINT_STEPS = 10
"""Steps of a point of the curve."""
PATIENCE = 3
"""Successive validations above the best one after which training ends early."""
LOSS_OVER_GUESSING = 1.0
"""Nats above the loss of a uniform guess, from which on a training has diverged."""


class Recipe(Protocol):
    """What one kind of training does in a step, and what of it must be saved."""

    def step(self, batch: Windows, step: int) -> Mapping[str, float]:
        """Train on one batch, [batch, length + 1]; metrics, of which "loss" is nats per token."""
        ...

    def tensors(self) -> Mapping[str, Tensor]:
        """Everything that a step changes, by name: weights, buffers, the optimiser's moments."""
        ...

    def validation_loss(self, windows: Windows) -> float:
        """Mean loss in nats per token on windows, as the trained model would run them."""
        ...


@dataclass(frozen=True)
class Budget:
    """How long a training goes on, and how often it is validated and saved."""

    num_steps: int
    save_steps: int = 100
    """Steps from one validation and checkpoint to the next; a multiple of `POINT_STEPS`."""
    validation_windows: int = 128
    ends_early: bool = True
    """Whether a validation loss that rises ends the training."""


class Diverged(ValueError):
    """A training whose loss is not a number, or worse than guessing."""


def train(recipe: Recipe, run: TrainingRun, text: Text, budget: Budget) -> None:
    """Run a recipe from where its folder stands to its budget; the folder has the result."""
    m = run.manifest
    if run.is_done:
        return
    state = _State()
    for point in run.restore(recipe.tensors()):
        state.pass_by(point)
    windows = text.windows("validation", budget.validation_windows, m.window)
    per_step = m.batch * m.window
    try:
        with terminal.Bar(1.0) as bar:
            while state.step < budget.num_steps:
                batch = text.batch(m.seed, state.step, (m.batch, m.window))
                state.take(recipe, batch, math.log(m.model.vocab_size))
                is_last = state.step == budget.num_steps
                saves = state.step % budget.save_steps == 0 or is_last
                if state.step % POINT_STEPS == 0 or is_last:
                    loss = recipe.validation_loss(windows) if saves else None
                    state.validated(loss)
                    run.append(state.point(per_step, loss))
                    state.tell(bar, m.run, per_step, budget.num_steps)
                if saves:
                    run.save(recipe.tensors(), state.step, state.validation_loss)
                    if budget.ends_early and state.worse >= PATIENCE:
                        break
    except Diverged as error:
        kept = run.checkpoints()
        good = f"{run.folder / kept.latest.file}" if kept else "none was saved"
        message = f"step {state.step + 1}: {error}; last good checkpoint: {good}"
        run.finish("diverged", state.step * per_step, state.seconds, message)
        raise ValueError(f"{run.folder}: training stopped at {message}") from error
    except KeyboardInterrupt:
        run.finish("interrupted", state.step * per_step, state.seconds, "interrupted")
        raise
    early = state.step < budget.num_steps
    why = f"the validation loss rose {PATIENCE} times in succession" if early else ""
    run.finish("ended-early" if early else "done", state.step * per_step, state.seconds, why)


@dataclass
class _State:
    """Where a training stands, and the sums of the point of the curve that it is at."""

    step: int = 0
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    since: int = 0
    spent: float = 0.0
    best: float = math.inf
    worse: int = 0
    validation_loss: float | None = None
    rate: float = 0.0
    last: float = math.nan

    def pass_by(self, point: CurvePoint) -> None:
        """Take note of a point that was reached before the training was taken up."""
        self.step, self.seconds = point.step, self.seconds + point.seconds
        self.validated(point.validation_loss)

    def take(self, recipe: Recipe, batch: Windows, guessing: float) -> None:
        """Run one step and add up its metrics; `Diverged` where its loss has no sense."""
        start = time.perf_counter()
        metrics = recipe.step(batch, self.step)
        self.spent += time.perf_counter() - start
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise Diverged(f"{name} is {value}")
            self.sums[name] = self.sums.get(name, 0.0) + value
        if metrics["loss"] > guessing + LOSS_OVER_GUESSING:
            raise Diverged(f"a loss of {metrics['loss']:.3f} nats is far worse than guessing")
        self.step += 1
        self.since += 1

    def validated(self, loss: float | None) -> None:
        """Take note of a validation loss."""
        self.validation_loss = loss
        if loss is not None:
            self.worse = 0 if loss < self.best else self.worse + 1
            self.best = min(self.best, loss)

    def point(self, per_step: int, loss: float | None) -> CurvePoint:
        """The point of the curve of the steps since the last one."""
        means = {name: total / self.since for name, total in self.sums.items()}
        point = CurvePoint(self.step, self.step * per_step, means, loss, self.spent)
        self.rate = self.since * per_step / self.spent
        self.seconds += self.spent
        self.sums, self.since, self.spent = {}, 0, 0.0
        self.last = means["loss"]
        return point

    def tell(self, bar: terminal.Bar, name: str, per_step: int, num_steps: int) -> None:
        """Move the bar: loss, tokens per second, and the time that the rest takes."""
        bar.expect(bar.elapsed() + (num_steps - self.step) * per_step / self.rate)
        validation = "" if self.best == math.inf else f", validation {self.best:.4f}"
        bar.tell(f"{name}: loss {self.last:.4f}{validation}, {self.rate / 1e3:.1f} k tokens/s")
