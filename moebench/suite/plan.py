"""Suites: which cells there are to measure, read from one TOML file.

A cell is one workload with all its routers: the unit of work, of interleaving and of resuming.
The first router of a suite is the baseline of every ratio.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

from moebench.experts.catalogue import EXPERT_BACKENDS, executing
from moebench.records.results import Caveat
from moebench.routers.policy import Policy, policy
from moebench.spec.case import Case, DType, Level, Phase, RouterSpec, Workload
from moebench.spec.model import ModelSpec, load_model, scaled_down
from moebench.spec.schema import MOST, check_range, from_mapping, read_toml
from moebench.units import Seconds, nearest
from moebench.version import PACKAGE

Kind = Literal["cpu", "gpu"]
SLOW_STEP: Seconds = 0.25
"""Cases with longer steps are not warmed up beyond their untimed passes, and have their stages read
off the memory pass: what that allocates costs nothing beside such a step."""


@dataclass(frozen=True)
class RouterEntry:
    """A `[[router]]` table: a line of every cell."""

    name: str
    """A router of moebench's, or "package.module:Policy": code that runs because it stands here."""
    label: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    is_floor: bool = False
    """The fixed smaller k that bounds what an adaptive router can gain."""


@dataclass(frozen=True)
class WorkloadEntry:
    """A `[[workload]]` table: the product of its lists."""

    phase: Phase
    levels: tuple[Level, ...] = ("moe", "decoder")
    batch: tuple[int, ...] = (1,)
    sequence_length: tuple[int, ...] = (1,)
    context_length: int = 0
    device: Literal["any", "cpu", "gpu"] = "any"

    def __post_init__(self) -> None:
        for name in ("batch", "sequence_length"):
            values = getattr(self, name)
            if not values or min(values) < 1 or max(values) > MOST[name]:
                raise ValueError(
                    f"{name}: found {list(values)}, expected numbers from 1 to {MOST[name]}"
                )
        if not self.levels:
            raise ValueError("levels: found [], expected 'moe', 'decoder' or both")
        check_range(self, "context_length")
        if self.phase == "decode" and self.sequence_length != (1,):
            raise ValueError("sequence_length: decode has one new token a sequence; leave it out")
        if self.phase != "decode" and self.context_length:
            raise ValueError("context_length: only decode has a filled cache")


@dataclass(frozen=True)
class MeasurePlan:
    """The `[plan]` table: how long to measure a cell."""

    min_rounds: int = 8
    """Fewer interleaved rounds leave a speedup "unclear"."""
    target_half_width: float = 0.01
    """A cell stops when every speedup's interval is this narrow, relative to the speedup."""
    stream_tokens: int = 4096
    """Distinct tokens that a cell's steps cycle through."""

    def __post_init__(self) -> None:
        check_range(self, "min_rounds", "stream_tokens", least=1)
        if self.target_half_width < 0:
            raise ValueError(
                f"target_half_width: found {self.target_half_width}, expected 0 or more"
            )


@dataclass(frozen=True)
class DevicePlan:
    """The `[cpu]` or `[gpu]` table."""

    num_layers: int
    time_budget: Annotated[Seconds, "time"]
    """Wall time of all cells together, after set-up and calibration."""
    backend: str | None = None
    """Expert execution on this kind of device instead of the suite's."""

    def __post_init__(self) -> None:
        check_range(self, "num_layers", least=1)


@dataclass(frozen=True)
class SuiteFile:
    """A suite as its TOML file has it."""

    schema: Literal[1]
    title: str
    model: str
    router: tuple[RouterEntry, ...]
    workload: tuple[WorkloadEntry, ...]
    cpu: DevicePlan
    gpu: DevicePlan
    dtype: DType = "bfloat16"
    kind: Literal["routers"] = "routers"
    backend: str = "grouped"
    seed: int = 0
    scale: int = 1
    """Divides the model's widths; quick suites are narrow, their routing is not."""
    skew: float = 0.0
    """Exponent of the power law of the experts' marginals."""
    plan: MeasurePlan = field(default_factory=MeasurePlan)

    def __post_init__(self) -> None:
        check_range(self, "scale", least=1)
        check_range(self, "seed", "skew")


@dataclass(frozen=True)
class Suite:
    """A suite that has been checked: the model and the policies exist and their options bind."""

    name: str
    text_sha256: str
    file: SuiteFile
    model: ModelSpec
    policies: tuple[Policy, ...]
    """One for each router entry, in order."""

    def device_plan(self, kind: Kind) -> DevicePlan:
        return self.file.cpu if kind == "cpu" else self.file.gpu

    def backend(self, kind: Kind) -> str:
        """The expert execution that the suite chooses on a kind of device."""
        return self.device_plan(kind).backend or self.file.backend


@dataclass(frozen=True)
class Cell:
    """One workload with all its routers."""

    key: str
    cases: tuple[Case, ...]
    policies: tuple[Policy, ...]
    """One for each case."""
    baseline: Case
    """The suite's first router; it stays the baseline where it is not among `cases` any more."""
    floor: Case | None
    """The case of the smaller fixed k, if the suite has one."""
    caveats: tuple[Caveat, ...] = ()
    """What should be known about all of its measurements."""

    @property
    def workload(self) -> Workload:
        return self.cases[0].workload


def suite_directory() -> Path:
    """Where the shipped suites lie: inside the package of a wheel, beside it in a checkout."""
    inside = PACKAGE / "suites"
    return inside if inside.is_dir() else PACKAGE.parent / "suites"


def suite_names() -> tuple[str, ...]:
    """Names of the suites that ship with moebench."""
    return tuple(sorted(path.stem for path in suite_directory().glob("*.toml")))


def load_suite(name: str) -> Suite:
    """A suite by its shipped name, or from a TOML file of one's own.

    Raises:
        ValueError: unknown suite, model, router or option, or an ill-typed value; the message has
            the file, the key, what was found, what was expected and the nearest known name.
    """
    path = suite_path(name)
    if not re.fullmatch(r"\w[\w .+-]*", path.stem):
        # It names a folder of the results.
        raise ValueError(f"{path}: expected a file name of letters, digits, '-', '_' and '.'")
    file = from_mapping(SuiteFile, read_toml(path), str(path))
    where = f"{path}: "
    try:
        model = scaled_down(load_model(file.model), file.scale)
    except ValueError as error:
        raise ValueError(f"{where}model: {error}") from error
    chosen = {"": file.backend, "[cpu]: ": file.cpu.backend, "[gpu]: ": file.gpu.backend}
    for table, backend in chosen.items():
        if backend is not None and backend not in EXPERT_BACKENDS:
            miss = nearest(backend, EXPERT_BACKENDS)
            raise ValueError(f"{where}{table}backend: unknown expert backend {backend!r}{miss}")
    # A suite that ships with moebench names no code; one of the user's own may.
    policies = _policies(file, where, model, may_import=name.endswith(".toml"))
    _check_workloads(file, where)
    return Suite(path.stem, sha256(path.read_bytes()).hexdigest(), file, model, policies)


def _policies(
    file: SuiteFile, where: str, model: ModelSpec, *, may_import: bool
) -> tuple[Policy, ...]:
    if not file.router or not file.workload:
        missing = "router" if not file.router else "workload"
        raise ValueError(f"{where}[[{missing}]]: found none, expected at least one")
    policies = []
    for entry in file.router:
        at = f"{where}[[router]] {entry.name}"
        found = policy(entry.name, entry.options, at, may_import=may_import)
        try:
            found.operating_point(model)
        except ValueError as error:
            what = str(error).removeprefix(f"{entry.name}: ")
            raise ValueError(f"{at}: {what}") from error
        policies.append(found)
    titles = [entry.label or entry.name for entry in file.router]
    doubled = sorted({title for title in titles if titles.count(title) > 1})
    if doubled:
        raise ValueError(f"{where}[[router]]: two are called {doubled[0]!r}; give one a label")
    return tuple(policies)


def _check_workloads(file: SuiteFile, where: str) -> None:
    """Every cell once: a case is known by its key, and a second one would have the same."""
    for kind in ("cpu", "gpu"):
        asked = workloads(file, kind)
        doubled = next((w for w in asked if asked.count(w) > 1), None)
        if doubled is not None:
            context = f" with context {doubled.context_length}" * (doubled.context_length > 0)
            raise ValueError(
                f"{where}[[workload]]: {doubled.level} {doubled.label}{context} is there twice"
            )


def suite_path(name: str) -> Path:
    """Where a suite's text is: a shipped name, or a TOML file of one's own.

    Raises:
        ValueError: unknown; the message has the nearest known name.
    """
    if name.endswith(".toml"):
        return Path(name)
    if name in suite_names():
        return suite_directory() / f"{name}.toml"
    raise ValueError(f"unknown suite {name!r}{nearest(name, suite_names())}")


def suite_kind(path: Path) -> str:
    """What a suite compares: "routers", or "experts" (`moebench.execution`)."""
    return str(read_toml(path).get("kind", "routers"))


def suite_title(path: Path) -> str:
    return str(read_toml(path).get("title", ""))


def _with_backends(planned: Sequence[Cell], backends: Sequence[str]) -> tuple[Cell, ...]:
    """The cells under each of some expert backends; ratios stay within a backend.

    A cell that two of them have executed by the same one, as `packed` has training by `grouped`,
    is there once.

    Raises:
        ValueError: a backend that is not known.
    """
    found: dict[str, Cell] = {}
    for name in backends:
        if name not in EXPERT_BACKENDS:
            raise ValueError(
                f"--experts: unknown expert backend {name!r}{nearest(name, EXPERT_BACKENDS)}"
            )
        for cell in planned:
            backend = executing(name, cell.workload.phase).name
            key = f"{cell.key} {backend}" if len(backends) > 1 else cell.key
            found.setdefault(key, replace(changed(cell, backend=backend), key=key))
    return tuple(found.values())


def changed(cell: Cell, **changes: str) -> Cell:
    """The cell with all of its cases changed alike."""

    def moved(case: Case) -> Case:
        return replace(case, **changes)  # type: ignore[arg-type]

    return replace(
        cell,
        cases=tuple(moved(case) for case in cell.cases),
        baseline=moved(cell.baseline),
        floor=moved(cell.floor) if cell.floor else None,
    )


def _is_replayed(cell: Cell) -> bool:
    """Whether a GPU runs the cell as CUDA graphs: decode, by a backend that can be captured.

    Launching such a step from the host takes longer than its work.
    """
    is_capturable = EXPERT_BACKENDS[cell.baseline.backend].is_capturable
    return cell.workload.phase == "decode" and is_capturable


def cells(
    suite: Suite,
    kind: Kind,
    num_layers: int | None = None,
    only: Sequence[str] = (),
    backends: Sequence[str] = (),
    is_eager: bool = False,
) -> tuple[Cell, ...]:
    """The cells of a suite on a kind of device, in the order of the file.

    Args:
        suite: the suite.
        kind: chooses workloads and the number of layers.
        num_layers: instead of the suite's.
        only: names or labels of routers to keep; the baseline always stays.
        backends: expert backends instead of the suite's, each with all cells. A case names the
            one that executes it, which in training may be the stand-in of the one asked for.
        is_eager: no CUDA graphs, where decode on a GPU would otherwise be replayed as such.

    Raises:
        ValueError: a router in `only` that the suite does not have, an unknown backend, or no
            workload for `kind`.
    """
    if num_layers is not None and not 1 <= num_layers <= MOST["num_layers"]:
        raise ValueError(f"--layers: found {num_layers}, expected 1 to {MOST['num_layers']}")
    entries = suite.file.router
    titles = [entry.label or entry.name for entry in entries]
    known = {*titles, *(entry.name for entry in entries)}
    for name in only:
        if name not in known:
            raise ValueError(
                f"--only: no router {name!r} in suite {suite.name}{nearest(name, known)}"
            )
    kept = [
        i
        for i, entry in enumerate(entries)
        if i == 0 or not only or entry.name in only or titles[i] in only
    ]
    asked = workloads(suite.file, kind)
    if not asked:
        raise ValueError(f"suite {suite.name}: none of its workloads is for a {kind}")
    planned = tuple(
        _cell(suite, kept, workload, num_layers or suite.device_plan(kind).num_layers)
        for workload in asked
    )
    planned = _with_backends(planned, backends or (suite.backend(kind),))
    if kind == "cpu" or is_eager:
        return planned
    return tuple(changed(cell, launch="graph") if _is_replayed(cell) else cell for cell in planned)


def workloads(file: SuiteFile, kind: Kind) -> tuple[Workload, ...]:
    """Every workload of the suite on a kind of device: the products of the lists."""
    return tuple(
        Workload(entry.phase, level, batch, length, entry.context_length, file.dtype, file.seed)
        for entry in file.workload
        if entry.device in ("any", kind)
        for level in entry.levels
        for batch in entry.batch
        for length in entry.sequence_length
    )


def _cell(suite: Suite, kept: Sequence[int], workload: Workload, num_layers: int) -> Cell:
    file = suite.file
    cases = tuple(
        Case(
            model=suite.model.name,
            router=RouterSpec(file.router[i].name, file.router[i].options, file.router[i].label),
            workload=workload,
            operating_point=suite.policies[i].operating_point(suite.model, file.skew),
            backend=file.backend,
            launch="eager",
            num_layers=num_layers,
        )
        for i in kept
    )
    context = f" context {workload.context_length}" if workload.context_length else ""
    floors = [case for case, i in zip(cases, kept, strict=True) if file.router[i].is_floor]
    return Cell(
        key=f"{workload.level} {workload.label}{context} {workload.dtype}",
        cases=cases,
        policies=tuple(suite.policies[i] for i in kept),
        baseline=cases[0],
        floor=floors[0] if floors else None,
    )
