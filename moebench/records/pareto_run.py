"""A run of quality against cost: `manifest.json`, and a line a setting in `records.jsonl`."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from moebench.records.checksum import Line, read_lines
from moebench.records.manifest import MANIFEST, RunManifest, Status, read_manifest
from moebench.records.quality import Quality
from moebench.records.results import Interval, Ratio, check_number
from moebench.records.router_use import ColouredText, RouterUse
from moebench.spec.schema import decode
from moebench.units import Flops, Joules, Seconds

PARETO_RECORDS = "records.jsonl"
PARETO_TIMES = "times.jsonl"


@dataclass(frozen=True)
class LatencyCell:
    """A workload in which every setting is timed: one unit of interleaved rounds."""

    phase: Literal["decode", "prefill", "train"]
    batch: int
    """Sequences of a step."""
    length: int
    """Tokens of a sequence: of the prompt, or in the cache before a decode step."""

    @property
    def title(self) -> str:
        """Name for people: "decode, batch 16"."""
        return f"{self.phase}, batch {self.batch}"

    @property
    def num_tokens(self) -> int:
        """Tokens of a step."""
        return self.batch if self.phase == "decode" else self.batch * self.length


@dataclass(frozen=True)
class CellTime:
    """Time and energy of a step of one setting, beside the base in the same rounds."""

    cell: LatencyCell
    latency: Interval | None
    """Seconds a step of all decoder layers; None: `missing` says why."""
    missing: str | None
    speedup: Ratio | None
    """Time of the base over that of the setting; None for the base."""
    joules: Joules | None
    joules_missing: str | None

    def __post_init__(self) -> None:
        check_number(self, "joules")
        if (self.latency is None) != bool(self.missing):
            raise ValueError("missing: expected a reason where there is no latency")
        if (self.joules is None) != bool(self.joules_missing):
            raise ValueError("joules_missing: expected a reason where there is no energy")


@dataclass(frozen=True)
class CellTimes:
    """All times of one cell, measured in the same rounds: a line of `times.jsonl`."""

    cell: LatencyCell
    times: Mapping[str, CellTime]
    """By setting."""


@dataclass(frozen=True)
class PredictedRatio:
    """Predicted time of a step over that of the model's own top-k."""

    model: str
    """The trained model, or the one that its operating point was carried over to."""
    hardware: str
    batch: int
    ratio: float | None
    missing: str | None
    caveats: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainingCost:
    """What making the router took, summed over its seeds; the base is not in it."""

    tokens: int
    seconds: Seconds
    flops: Flops | None
    flops_missing: str | None
    joules: Joules | None
    joules_missing: str | None

    def __post_init__(self) -> None:
        check_number(self, "tokens", "seconds", "flops", "joules")


@dataclass(frozen=True)
class ParetoRecord:
    """One router at one operating point: its quality beside its cost."""

    setting: str
    """Name within the run: "ada-k, regularisation 0.01"."""
    router: str
    """Name of the router; "top-k" for the base and its twins."""
    options: Mapping[str, Any]
    """Options of the router, and of its training where there is one."""
    recipe: str | None
    """Recipe of `python -m moebench.train` that made it; None: calibrated, not trained."""
    runs: tuple[str, ...]
    """Folder names of the trainings, one a seed; of the base where nothing else was trained."""
    twin: str | None
    """Setting that it is compared with at equal tokens: "adamoe-twin"; None: the base."""
    calibrated_k: float | None
    """Mean k that was set on text for training; None: the router's own."""
    base_k: int
    """Experts a token of the base."""
    quality: Quality
    use: RouterUse
    """What the router of the first seed did."""
    mean_k_by_seed: tuple[float, ...]
    test_window_losses: tuple[tuple[float, ...], ...]
    """Mean loss of each test window in nats a byte, [seeds][windows], from which settings are
    compared window by window."""
    flops_per_token: Flops | None
    """FLOPs of a token in all decoder layers at the observed load, without the head."""
    flops_missing: str | None
    base_flops_per_token: Flops | None
    times: tuple[CellTime, ...]
    """Empty in a line of `records.jsonl`: reading a run joins those of `times.jsonl`."""
    predictions: tuple[PredictedRatio, ...]
    training: TrainingCost | None
    """None: nothing was trained."""
    text: ColouredText | None = None
    """A window of test text with k; None where k is constant."""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_number(self, "flops_per_token", "base_flops_per_token", "base_k")
        seeds = len(self.test_window_losses)
        if not seeds or seeds != len(self.mean_k_by_seed):
            raise ValueError(
                f"test_window_losses: found {seeds} seeds, expected as many as mean_k_by_seed has, "
                f"{len(self.mean_k_by_seed)}, and at least one"
            )
        if {len(losses) for losses in self.test_window_losses} != {self.quality.num_windows}:
            raise ValueError(
                f"test_window_losses: expected {self.quality.num_windows} windows of every seed"
            )

    @property
    def is_base(self) -> bool:
        """Whether this is the base itself."""
        return self.recipe == "base"

    @property
    def saved(self) -> float:
        """Share of the base's assignments that are not made, mean over seeds."""
        return 1 - sum(self.mean_k_by_seed) / len(self.mean_k_by_seed) / self.base_k


@dataclass(frozen=True)
class NotTrained:
    """A setting of the plan without a result, for want of its training."""

    setting: str
    missing_runs: tuple[str, ...]
    tokens: int
    """Tokens that the missing runs need."""
    why: str


@dataclass(frozen=True, kw_only=True)
class ParetoManifest(RunManifest):
    """What a run of quality against cost is: enough to repeat it and to read its numbers."""

    machine: str
    """Name of the CPU or GPU model; never a host name."""
    training_suite: str
    training_folder: str
    """Folder of the trainings, as the command gives it."""
    trainings: Mapping[str, int]
    """Folder names of the trainings behind the records, with their tokens."""
    text: str
    text_sha256: str
    not_trained: tuple[NotTrained, ...] = ()
    settings: tuple[str, ...] = ()
    """All settings of the plan, in its order."""
    status: Status = "running"
    finished_at: str | None = None
    kind: Literal["pareto"] = "pareto"


@dataclass(frozen=True)
class ParetoRun:
    """What the directory of a pareto run holds."""

    directory: Path
    manifest: ParetoManifest
    lines: tuple[Line[ParetoRecord], ...] = field(repr=False)
    time_lines: tuple[Line[CellTimes], ...] = field(repr=False, default=())

    @property
    def cells(self) -> tuple[CellTimes, ...]:
        """The cells that were timed and whose lines are undamaged."""
        return tuple(line.value for line in self.time_lines if line.value is not None)

    @property
    def records(self) -> tuple[ParetoRecord, ...]:
        """The records whose lines are undamaged, with their times."""
        return tuple(
            replace(
                line.value,
                times=(*line.value.times, *self._times_of(line.value.setting)),
            )
            for line in self.lines
            if line.value is not None
        )

    @property
    def problems(self) -> tuple[str, ...]:
        """Lines that could not be read: file, line number, reason."""
        found = [line.problem for line in self.lines] + [line.problem for line in self.time_lines]
        return tuple(problem for problem in found if problem)

    def _times_of(self, setting: str) -> tuple[CellTime, ...]:
        return tuple(cell.times[setting] for cell in self.cells if setting in cell.times)


def load_pareto_run(directory: Path) -> ParetoRun:
    """Read a run's directory without changing it; damaged lines are problems."""
    table = read_manifest(directory)
    if table.get("kind") != "pareto":
        raise ValueError(
            f"{directory}: found a run of kind {table.get('kind', 'routers')!r}, expected 'pareto'"
        )
    manifest = decode(ParetoManifest, table, str(directory / MANIFEST))
    lines = read_lines(directory / PARETO_RECORDS, ParetoRecord, all_checked=True)
    times = read_lines(directory / PARETO_TIMES, CellTimes, all_checked=True)
    return ParetoRun(directory, manifest, tuple(lines), tuple(times))
