"""A run that compares expert backends: `manifest.json`, and one line a cell in `cells.jsonl`."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from moebench.records.checksum import Line, read_lines
from moebench.records.host import HostLoad
from moebench.records.manifest import MANIFEST, RunManifest, read_manifest, run_kind
from moebench.records.record import CHECKSUMS_SINCE
from moebench.records.results import Provenance
from moebench.spec.case import DType
from moebench.spec.model import ModelSpec, load_model, scaled_down
from moebench.spec.schema import decode
from moebench.units import Bytes, Flops, Seconds, nearest

CELLS = "cells.jsonl"
STEPS, LONG_STEPS, LONG = 8, 2, 1024
"""Different steps of a cell, and how many from how many tokens on."""
MATMUL_SIZE, GPU_MATMUL_SIZE = 2048, 8192
"""Rows and columns of the matmul that shows a machine's rate: 2048 would not fill a GPU."""
READ_BYTES = 1 << 28


def probe_work(matmul_size: int) -> dict[str, Flops | Bytes]:
    """FLOPs or bytes of the probes of a machine's limits, which run in the rounds of every cell."""
    product, read = 2.0 * matmul_size**3, float(READ_BYTES)
    matmuls = {f"matmul {dtype}": product for dtype in ("bfloat16", "float32")}
    return matmuls | {f"read {way}": read for way in ("sum", "dot", "copy")}


PROBE_WORK = probe_work(MATMUL_SIZE)
"""Work of the probes on a processor."""


@dataclass(frozen=True)
class ExpertsCell:
    """One shape and step with every backend and mix: the unit of interleaving and of resuming."""

    shape: str
    model: str
    scale: int
    phase: Literal["forward", "train"]
    dtype: DType
    num_tokens: int
    mixes: tuple[str, ...]
    """Names of `moebench.routers.synthetic.mixes`."""
    description: ModelSpec | None = None
    """The model, if it does not ship with moebench."""

    @property
    def key(self) -> str:
        return f"{self.shape}, {self.phase}, {self.num_tokens} tokens, {self.dtype}"

    @property
    def num_steps(self) -> int:
        """Different steps that the cell cycles through."""
        return STEPS if self.num_tokens < LONG else LONG_STEPS

    def spec(self) -> ModelSpec:
        """The model, its widths divided by `scale`."""
        return scaled_down(self.description or load_model(self.model), self.scale)


@dataclass
class ExpertsResult:
    """What was measured of a cell: a line of `cells.jsonl`."""

    plan: ExpertsCell
    loads: dict[str, list[tuple[int, int]]]
    """For each mix, assignments and touched experts of each step."""
    samples: dict[str, dict[str, list[tuple[int, int, Seconds]]]] = field(default_factory=dict)
    """Round, first step and seconds a step of each visit, by backend (or "router NAME") and mix."""
    limits: dict[str, list[Seconds]] = field(default_factory=dict)
    """Seconds of each probe in each round."""
    errors: dict[str, str] = field(default_factory=dict)
    """Message of what failed, by "backend, mix"."""
    num_steps: dict[str, int] = field(default_factory=dict)
    """Steps of a sample, by "backend, mix"."""
    load: HostLoad | None = None
    """Load of the host over the rounds; None in older runs."""
    matmul_size: int = MATMUL_SIZE
    """Rows and columns of the probes' matmuls; as on a processor in older runs."""


@dataclass(frozen=True, kw_only=True)
class ExpertsManifest(RunManifest):
    """What a run of expert backends is: enough to repeat it and to read its numbers."""

    backends: tuple[str, ...]
    absent: Mapping[str, str]
    """Backends of the suite that do not run here, and why."""
    cells: tuple[str, ...]
    kind: Literal["experts"] = "experts"
    provenance: Provenance = "measured"
    """Provenance of all times: "simulated" where the GPU's NVML library is a simulator."""

    def fact(self, part: str, name: str) -> str:
        """A fact of the environment's "cpu" or "software", for people; a dash if it is missing."""
        table = self.environment.get(part)
        return str(table.get(name, "–")) if isinstance(table, Mapping) else "–"


@dataclass(frozen=True)
class ExpertsRun:
    """What the directory of a run of expert backends holds."""

    directory: Path
    manifest: ExpertsManifest
    lines: tuple[Line[ExpertsResult], ...]

    @property
    def cells(self) -> tuple[ExpertsResult, ...]:
        """The cells whose lines are undamaged."""
        return tuple(line.value for line in self.lines if line.value is not None)

    @property
    def problems(self) -> tuple[str, ...]:
        """Lines that could not be read: file, line number, reason."""
        return tuple(line.problem for line in self.lines if line.problem)


def load_experts_run(directory: Path) -> ExpertsRun:
    """Read a run's directory without changing it; damaged lines are problems."""
    table = read_manifest(directory)
    if run_kind(table) != "experts":
        raise ValueError(f"{directory}: found a run of routers, expected one of expert backends")
    # Manifests of schema 1 all say so.
    manifest = decode(ExpertsManifest, {"schema": 1} | table, str(directory / MANIFEST))
    sealed = manifest.schema >= CHECKSUMS_SINCE
    lines = read_lines(directory / CELLS, ExpertsResult, all_checked=sealed)
    return ExpertsRun(directory, manifest, tuple(map(_checked, lines)))


def _checked(line: Line[ExpertsResult]) -> Line[ExpertsResult]:
    """The line, or what is wrong with it, if no table can be made of its cell."""
    cell = line.value
    if cell is None:
        return line
    try:
        cell.plan.spec()
        times = [*cell.limits.values()]
        for what, mixes in cell.samples.items():
            for mix, samples in mixes.items():
                times.append([seconds for *_, seconds in samples])
                if not cell.loads.get(mix) or cell.num_steps.get(f"{what}, {mix}", 0) < 1:
                    raise ValueError(f"loads, num_steps: expected those of {what}, {mix}")
        if not all(each and all(0 < seconds < 1e9 for seconds in each) for each in times):
            raise ValueError("samples, limits: found a time that no clock can give")
        has_read = any(name.startswith("read ") for name in cell.limits)
        if not has_read or f"matmul {cell.plan.dtype}" not in cell.limits:
            raise ValueError("limits: expected those of a matmul and of reading")
        for name in cell.limits:
            if name not in PROBE_WORK:
                raise ValueError(f"limits: unknown {name!r}{nearest(name, PROBE_WORK)}")
    except ValueError as error:
        return replace(line, value=None, problem=f"{line.where}: {error}; skipped")
    return line
