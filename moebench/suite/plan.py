"""Cells of a suite of routers: which there are, which run here, and by which expert backend.

A cell is one workload with all its routers: the unit of work, of interleaving and of resuming.
The first router of a suite is the baseline of every ratio. A backend that the user named runs or
is refused; one that only the suite chose gives way to its stand-in, and every record then says what
ran and why.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from moebench.experts.catalogue import EXPERT_BACKENDS, executing
from moebench.predict.learned import is_of_kind, learned_caveats, learned_routing, shared_experts
from moebench.records.results import Caveat
from moebench.routers.policy import Policy
from moebench.spec.case import Case, OperatingPoint, RouterSpec, Workload
from moebench.spec.learned_point import LearnedPoint
from moebench.spec.model import ModelSpec
from moebench.spec.schema import MOST
from moebench.suite.suite_file import DeviceKind, MeasurePlan, Suite, workloads
from moebench.terminal import Bar
from moebench.units import Seconds, nearest, same_name

if TYPE_CHECKING:
    import torch

SLOW_STEP: Seconds = 0.25
"""Cases with longer steps have no warm-up but their untimed passes, and their stages are timed in
the memory pass: allocations take no time beside such a step."""


@dataclass(frozen=True)
class Cell:
    """One workload with all its routers, planned."""

    key: str
    cases: tuple[Case, ...]
    policies: tuple[Policy, ...]
    """Policies of the cases, in their order."""
    baseline: Case
    """Case of the suite's first router, also where it is not among `cases` any more."""
    floor: Case | None
    """Case of the smaller fixed k, if the suite has one."""
    caveats: tuple[Caveat, ...] = ()
    """Caveats of all measurements of the cell."""
    point_caveats: tuple[Caveat, ...] = ()
    """Caveats of its operating points, for measurements and predictions."""

    @property
    def workload(self) -> Workload:
        return self.cases[0].workload


def _with_backends(planned: Sequence[Cell], backends: Sequence[str]) -> tuple[Cell, ...]:
    """The cells under each of some expert backends; ratios compare cases of one backend.

    Two backends may have a cell executed by the same one, as `packed` has training executed by
    `grouped`: such a cell is planned once.
    """
    by_key: dict[str, Cell] = {}
    for name in [same_name(backend, EXPERT_BACKENDS) for backend in backends]:
        if name not in EXPERT_BACKENDS:
            raise ValueError(
                f"--experts: unknown expert backend {name!r}{nearest(name, EXPERT_BACKENDS)}"
            )
        for cell in planned:
            backend = executing(name, cell.workload.phase).name
            key = f"{cell.key} {backend}" if len(backends) > 1 else cell.key
            by_key.setdefault(key, replace(changed(cell, backend=backend), key=key))
    return tuple(by_key.values())


def changed(cell: Cell, **changes: str) -> Cell:
    """The cell with these fields changed in all of its cases."""

    def moved(case: Case) -> Case:
        return replace(case, **changes)  # type: ignore[arg-type]

    return replace(
        cell,
        cases=tuple(moved(case) for case in cell.cases),
        baseline=moved(cell.baseline),
        floor=moved(cell.floor) if cell.floor else None,
    )


@dataclass(frozen=True)
class Effort:
    """How long and how closely cells are measured."""

    plan: MeasurePlan
    """Rounds and precision to reach, and tokens of the stream."""
    energy: Literal["quick", "full", "off"]
    bar: Bar
    """Runs over the time that the whole run may take."""


@dataclass(frozen=True)
class CellChoice:
    """What a command line asks of a suite."""

    num_layers: int | None = None
    """Layers run in each step; None: the suite's number."""
    only: tuple[str, ...] = ()
    """Names or labels of routers to run; the baseline always runs. Empty: all routers."""
    backends: tuple[str, ...] = ()
    """Expert backends instead of the suite's, each with all cells."""
    learned: LearnedPoint | None = None
    """Operating point of the routers of its kind, whose experts' shares hold for all routers."""
    is_eager: bool = False
    """No CUDA graphs, where decode on a GPU would otherwise be replayed as one."""


def cells(suite: Suite, kind: DeviceKind, choice: CellChoice = CellChoice()) -> tuple[Cell, ...]:
    """The cells of a suite on a kind of device, in the order of the file.

    A case names the backend that executes it, which in training may be the stand-in of the one
    asked for.
    """
    num_layers = choice.num_layers or suite.device_plan(kind).num_layers
    if num_layers > MOST["num_layers"]:
        raise ValueError(f"--layers: found {num_layers}, expected 1 to {MOST['num_layers']}")
    entries = suite.file.router
    titles = [entry.label or entry.name for entry in entries]
    known = {*titles, *(entry.name for entry in entries)}
    only = [same_name(name, known) for name in choice.only]
    for name in only:
        if name not in known:
            raise ValueError(
                f"--only: no router {name!r} in suite {suite.name}{nearest(name, known)}"
            )
    asked = {*only} or known
    chosen = [i for i, e in enumerate(entries) if i == 0 or asked & {e.name, titles[i]}]
    on_device = workloads(suite.file, kind)
    if not on_device:
        raise ValueError(f"suite {suite.name}: none of its workloads is for a {kind}")
    points = _points(suite, choice.learned)
    where = kind, num_layers
    planned = tuple(_cell(suite, chosen, workload, where, points) for workload in on_device)
    if choice.learned is not None:
        doubts = learned_caveats(choice.learned, suite.model)
        planned = tuple(replace(cell, point_caveats=doubts) for cell in planned)
    if suite.checkpoint is not None:
        doubts = suite.checkpoint.caveats
        planned = tuple(
            replace(cell, point_caveats=(*doubts, *cell.point_caveats)) for cell in planned
        )
    planned = _with_backends(planned, choice.backends or (suite.backend(kind),))
    if kind == "cpu" or choice.is_eager:
        return planned
    # Launching a step of decode from the host takes longer than its work: such steps are replayed.
    return tuple(
        changed(cell, launch="graph")
        if cell.workload.phase == "decode" and EXPERT_BACKENDS[cell.baseline.backend].is_capturable
        else cell
        for cell in planned
    )


def _points(suite: Suite, learned: LearnedPoint | None) -> tuple[OperatingPoint, ...]:
    """How each router of a suite routes."""
    model = suite.model
    points = [own.operating_point(model, suite.file.skew) for own in suite.policies]
    if learned is None and suite.checkpoint is not None:
        return suite.checkpoint.routed(points, suite.file.plan.stream_tokens, suite.file.seed)
    if learned is None:
        return tuple(points)
    return tuple(
        learned_routing(learned, own, model)
        if is_of_kind(learned, own, model)
        else shared_experts(learned, point, model)
        for own, point in zip(suite.policies, points, strict=True)
    )


def _cell(
    suite: Suite,
    chosen: Sequence[int],
    workload: Workload,
    where: tuple[DeviceKind, int],
    points: Sequence[OperatingPoint],
) -> Cell:
    """The cell of a workload on a kind of device, in so many layers."""
    file, (kind, num_layers) = suite.file, where
    cases = tuple(
        Case(
            model=suite.model.name,
            router=RouterSpec(file.router[i].name, file.router[i].options, file.router[i].label),
            workload=workload,
            operating_point=points[i],
            backend=suite.backend(kind),
            launch="eager",
            num_layers=num_layers,
        )
        for i in chosen
    )
    context = f" context {workload.context_length}" if workload.context_length else ""
    floors = [case for case, i in zip(cases, chosen, strict=True) if file.router[i].is_floor]
    return Cell(
        key=f"{workload.level} {workload.label}{context} {workload.dtype}",
        cases=cases,
        policies=tuple(suite.policies[i] for i in chosen),
        baseline=cases[0],
        floor=floors[0] if floors else None,
    )


def runnable_cells(
    planned: Sequence[Cell], device: "torch.device", model: ModelSpec, *, is_asked: bool = False
) -> tuple[tuple[Cell, ...], tuple[str, ...]]:
    """The cells that can run here, and a line for each that cannot or has another backend.

    A suite's own choice of a backend gives way to its stand-in, one that the user asked for is
    refused.
    """
    import torch

    from moebench.experts.backends import cannot_take, why_not

    runnable, notes = [], []
    for cell in planned:
        dtype = getattr(torch, cell.workload.dtype)
        while why := (
            why_not(name := cell.baseline.backend, device, dtype) or cannot_take(name, model)
        ):
            stand_in = EXPERT_BACKENDS[name].stand_in
            if is_asked or stand_in is None:
                raise ValueError(f"expert backend {name!r} does not run here: {why}")
            stand_in = executing(stand_in, cell.workload.phase).name
            caveat = Caveat(
                "stand-in",
                f"expert backend {name!r}, the suite's choice, does not run here: {why}",
                f"{stand_in!r} ran instead; its speedups at few tokens may be others",
                "name the backend (--experts), or use a processor and a torch that have it",
            )
            launch = cell.baseline.launch if EXPERT_BACKENDS[stand_in].is_capturable else "eager"
            cell = changed(cell, backend=stand_in, launch=launch)
            cell = replace(cell, caveats=(*cell.caveats, caveat))
            notes.append(f"expert backend {name!r} does not run here: {why}; {stand_in!r} runs")
        backend = EXPERT_BACKENDS[cell.baseline.backend]
        if cell.workload.phase == "train" and not backend.has_gradients:
            notes.append(f"{cell.key}: left out, {backend.name!r} is for inference only")
        else:
            runnable.append(cell)
    names = {cell.baseline.backend for cell in planned}
    for name in names:
        if EXPERT_BACKENDS[name].owns_process and len(names) > 1:
            raise ValueError(
                f"--experts: {name!r} brings a matmul library that must not share a process; "
                "run it by itself"
            )
    return tuple(runnable), tuple(dict.fromkeys(notes))
