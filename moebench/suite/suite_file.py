"""Suites of routers as TOML files: their tables, their checks, and the suites that ship."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from moebench.experts.catalogue import EXPERT_BACKENDS
from moebench.routers.policy import Policy, policy
from moebench.spec.case import DType, Level, Phase, Workload
from moebench.spec.model import ModelSpec, scaled_down
from moebench.spec.schema import MOST, check_range, from_mapping
from moebench.suite.source import SuiteSource, suite_source
from moebench.units import Seconds, nearest

if TYPE_CHECKING:
    from moebench.suite.checkpoint import CheckpointLayers

DeviceKind = Literal["cpu", "gpu"]
DEFAULT_BACKENDS: Mapping[DeviceKind, str] = {"cpu": "grouped", "gpu": "triton"}
"""Expert backend of a suite that names none. On a GPU eager decode would time the host: a step of
`triton` fits into a CUDA graph."""


@dataclass(frozen=True)
class RouterEntry:
    """A `[[router]]` table: a router that every cell runs."""

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
    """Wall time of the whole run, from its start to its report."""
    backend: str | None = None
    """Expert backend on this kind of device; None: the suite's, or the kind's default."""

    def __post_init__(self) -> None:
        check_range(self, "num_layers", least=1)


@dataclass(frozen=True)
class SuiteFile:
    """The tables of a suite's TOML file."""

    schema: Literal[1]
    title: str
    model: str
    router: tuple[RouterEntry, ...]
    workload: tuple[WorkloadEntry, ...]
    cpu: DevicePlan
    gpu: DevicePlan
    dtype: DType = "bfloat16"
    kind: Literal["routers"] = "routers"
    backend: str | None = None
    """Expert backend on devices whose table names none; None: `DEFAULT_BACKENDS`."""
    seed: int = 0
    scale: int = 1
    """Divisor of the model's widths: quick suites run narrow layers with unchanged routing."""
    skew: float = 0.0
    """Exponent of the power law of the experts' marginals."""
    plan: MeasurePlan = field(default_factory=MeasurePlan)

    def __post_init__(self) -> None:
        check_range(self, "scale", least=1)
        check_range(self, "seed", "skew")


@dataclass(frozen=True)
class Suite:
    """A suite that has been checked: the model and the policies exist and their options bind."""

    source: SuiteSource
    file: SuiteFile
    model: ModelSpec
    """The model that is run, its widths divided by the suite's `scale`."""
    policies: tuple[Policy, ...]
    """Policies of the router entries, in their order."""
    models: Mapping[str, ModelSpec]
    """The whole model, by the name that the file gives it."""
    checkpoint: "CheckpointLayers | None" = None
    """Where the layers' weights come from; None: they are random."""

    @property
    def name(self) -> str:
        return self.source.name

    def device_plan(self, kind: DeviceKind) -> DevicePlan:
        return self.file.cpu if kind == "cpu" else self.file.gpu

    def backend(self, kind: DeviceKind) -> str:
        """Expert backend that the suite chooses on a kind of device."""
        return self.device_plan(kind).backend or self.file.backend or DEFAULT_BACKENDS[kind]


def suite_tables(source: SuiteSource) -> SuiteFile:
    """The tables of a suite of routers."""
    file: SuiteFile = from_mapping(SuiteFile, source.tables(), source.where)
    return file


def load_suite(name: str | SuiteSource) -> Suite:
    """Read and check a suite by its shipped name, from a TOML file, or from its text."""
    source = suite_source(name) if isinstance(name, str) else name
    file = suite_tables(source)
    where = f"{source.where}: "
    try:
        described = source.model(file.model)
        model = scaled_down(described, file.scale)
    except ValueError as error:
        raise ValueError(f"{where}model: {error}") from error
    chosen = {"": file.backend, "[cpu]: ": file.cpu.backend, "[gpu]: ": file.gpu.backend}
    for table, backend in chosen.items():
        if backend is not None and backend not in EXPERT_BACKENDS:
            miss = nearest(backend, EXPERT_BACKENDS)
            raise ValueError(f"{where}{table}backend: unknown expert backend {backend!r}{miss}")
    policies = _policies(file, where, model, may_import=source.may_import)
    for kind in get_args(DeviceKind):
        # Two cells of one workload would have cases of the same keys.
        asked = workloads(file, kind)
        for twice in asked:
            if asked.count(twice) > 1:
                context = f" with context {twice.context_length}" if twice.context_length else ""
                raise ValueError(
                    f"{where}[[workload]]: {twice.level} {twice.label}{context} is there twice"
                )
    return Suite(source, file, model, policies, {file.model: described})


def _policies(
    file: SuiteFile, where: str, model: ModelSpec, *, may_import: bool
) -> tuple[Policy, ...]:
    if not file.router or not file.workload:
        missing = "router" if not file.router else "workload"
        raise ValueError(f"{where}[[{missing}]]: found none, expected at least one")
    policies = []
    for entry in file.router:
        at = f"{where}[[router]] {entry.name}"
        chosen = policy(entry.name, entry.options, at, may_import=may_import)
        try:
            chosen.operating_point(model)
        except ValueError as error:
            what = str(error).removeprefix(f"{entry.name}: ")
            raise ValueError(f"{at}: {what}") from error
        policies.append(chosen)
    titles = [entry.label or entry.name for entry in file.router]
    doubled = sorted({title for title in titles if titles.count(title) > 1})
    if doubled:
        raise ValueError(f"{where}[[router]]: two are called {doubled[0]!r}; give one a label")
    return tuple(policies)


def workloads(file: SuiteFile, kind: DeviceKind) -> tuple[Workload, ...]:
    """Every workload of the suite on a kind of device: the products of the lists."""
    return tuple(
        Workload(entry.phase, level, batch, length, entry.context_length, file.dtype, file.seed)
        for entry in file.workload
        if entry.device in ("any", kind)
        for level in entry.levels
        for batch in entry.batch
        for length in entry.sequence_length
    )
