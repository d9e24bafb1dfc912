"""A suite of quality against cost: which routers are compared, at which mean k, and how."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moebench.records.pareto_run import LatencyCell
from moebench.spec.schema import check_range, from_mapping
from moebench.suite.source import SuiteSource
from moebench.train.plan import PlannedTraining, TrainingSuite, training_suite
from moebench.train.recipes import RECIPES, Asked, run_name

RIVALS = ("random-k", "top-p", "skip", "entropy-k")
"""Routers that are brought to a mean k on text for training, and need no training."""
REGRESSION = "regression-k"
TWINS: Mapping[str, str] = {"adamoe": "adamoe-twin", "rmoe": "rmoe-twin"}
"""Trainings with the same tokens and another router, which a training is compared with."""


@dataclass(frozen=True)
class ParetoSuite:
    """A suite of quality against cost as its file has it."""

    title: str
    training: str
    """The training suite whose runs are compared."""
    cell: tuple[LatencyCell, ...]
    """Workloads in which every setting is timed."""
    windows: int = 1024
    """Windows of each part, validation and test, of the training suite's length."""
    calibration_windows: int = 64
    """Windows of text for training on which rivals are brought to a mean k."""
    means: tuple[float, ...] = ()
    """Mean k of the rivals, beside those that trained routers have."""
    own_k: tuple[int, ...] = ()
    """Experts that each token of a batch brings along under `oea`."""
    hardware: tuple[str, ...] = ()
    """Machines that times are predicted for."""
    predicted_batches: tuple[int, ...] = (1, 16, 256)
    rounds: int = 12
    """Rounds in which all settings of a cell are timed."""
    kind: str = "pareto"
    schema: int = 1

    def __post_init__(self) -> None:
        check_range(self, "windows", "calibration_windows", "rounds", least=1)


@dataclass(frozen=True)
class Setting:
    """One router at one operating point: a line of the table."""

    name: str
    router: str
    recipe: str | None = None
    """Recipe that trained it; None: calibrated on the base."""
    runs: tuple[Asked, ...] = ()
    """Its trainings, one a seed."""
    options: Mapping[str, Any] = field(default_factory=dict)
    mean_k: float | None = None
    """Mean k that it is brought to; None: its own."""

    @property
    def twin(self) -> str | None:
        return TWINS.get(self.recipe or "")


@dataclass(frozen=True)
class ParetoPlan:
    """A suite with the trainings that it rests on."""

    suite: ParetoSuite
    trainings: TrainingSuite
    base: Asked
    trained: tuple[Setting, ...]
    """Settings that are trainings of their own, the base first."""
    regression: Asked | None
    """The training that measured what experts are worth; None: the suite has none."""

    def untrained(self, means: Mapping[str, float]) -> tuple[Setting, ...]:
        """Settings that are calibrated on the base.

        Args:
            means: Mean k of trained routers by their setting, at which rivals are set too.
        """
        model = self.trainings.model
        k, layers = model.top_k, model.num_layers
        wanted = dict.fromkeys(round(m, 2) for m in (*self.suite.means, *means.values()))
        able = [mean for mean in sorted(wanted, reverse=True) if 1 <= mean < k]
        routers = (*RIVALS, *((REGRESSION,) if self.regression else ()))
        found = [
            Setting(f"{router}, k {mean:g}", router, mean_k=mean)
            for router in routers
            for mean in able
        ]
        fixed = [(count,) * layers for count in (*range(1, k), k + 1) if count <= model.num_experts]
        found += [
            Setting(f"fixed-k {counts[0]}", "fixed-k", options={"k": list(counts)})
            for counts in fixed
        ]
        found += [
            Setting(
                f"fixed-k by layer, {layers * k - less} of {layers * k}",
                "fixed-k",
                mean_k=k - less / layers,
            )
            for less in range(1, layers)
        ]
        found += [
            Setting(
                f"oea, own k {own}, batch {batch}", "oea", options={"own_k": own, "batch": batch}
            )
            for own in self.suite.own_k
            for batch in self.suite.predicted_batches
            if batch > 1
        ]
        return tuple(found)


def pareto_plan(source: SuiteSource, training_folder: Path, text: Path | None) -> ParetoPlan:
    """The plan of a suite; `training_folder` is where its trainings lie or will lie."""
    suite = from_mapping(ParetoSuite, source.tables(), source.where)
    trainings = training_suite(suite.training)
    base = _asked(suite, trainings.planned("base"), 1, training_folder, text, None)
    base_folder = training_folder / run_name(base, RECIPES["base"])
    trained = [Setting("base", "top-k", "base", (base,))]
    regression = None
    for run in trainings.run:
        if run.recipe == "base":
            continue
        start = base_folder if run.base else None
        asked = tuple(_asked(suite, run, seed, training_folder, text, start) for seed in run.seeds)
        if run.recipe == REGRESSION:
            regression = asked[0]
            continue
        options = "".join(f", {name} {_shown(value)}" for name, value in run.options.items())
        router = RECIPES[run.recipe].router
        trained.append(Setting(f"{run.recipe}{options}", router, run.recipe, asked, run.options))
    return ParetoPlan(suite, trainings, base, tuple(trained), regression)


def _asked(
    suite: ParetoSuite,
    run: PlannedTraining,
    seed: int,
    folder: Path,
    text: Path | None,
    base: Path | None,
) -> Asked:
    options = RECIPES[run.recipe].options(**run.options)
    return Asked(run.recipe, suite.training, seed, run.tokens, folder, options, base, text)


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
