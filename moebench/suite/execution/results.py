"""A run of expert backends on disk: `manifest.json`, and one line a cell in `cells.jsonl`.

Both carry checksums, as those of other runs do: a damaged line is named, and its cell is measured
again when the run is taken up.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from moebench.records.lines import Line, read_lines
from moebench.records.results import SEALED_SINCE
from moebench.records.run import MANIFEST, read_manifest, run_kind
from moebench.spec.schema import decode
from moebench.suite.execution.plan import CellPlan
from moebench.suite.execution.work import PROBE_WORK
from moebench.units import Seconds, nearest

CELLS = "cells.jsonl"


@dataclass(frozen=True)
class ExecutionManifest:
    """What a run of expert backends is."""

    run: str
    suite: str
    suite_sha256: str
    """Of the suite file's text."""
    title: str
    command: str
    """What to type to repeat the run."""
    argv: tuple[str, ...]
    environment: Mapping[str, Any]
    """Facts of the machine and its software, as a plain table."""
    backends: tuple[str, ...]
    absent: Mapping[str, str]
    """Backends of the suite that do not run here, and why."""
    cells: tuple[str, ...]
    """Keys of the planned cells."""
    started_at: str
    kind: Literal["experts"] = "experts"
    schema: int = 1

    @property
    def fingerprint(self) -> Any:
        """Of machine and software; None where the manifest does not say."""
        return self.environment.get("fingerprint")

    def fact(self, part: str, name: str) -> str:
        """A fact of the environment's "cpu" or "software", for people; a dash if it is missing."""
        table = self.environment.get(part)
        return str(table.get(name, "–")) if isinstance(table, Mapping) else "–"


@dataclass
class CellResult:
    """What one cell gave."""

    plan: CellPlan
    loads: dict[str, list[tuple[int, int]]]
    """For each mix, assignments and touched experts of each step."""
    samples: dict[str, dict[str, list[tuple[int, int, Seconds]]]] = field(default_factory=dict)
    """By backend (or "router NAME") and mix: round, first step, seconds a step."""
    limits: dict[str, list[Seconds]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    num_steps: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class KeptCells:
    """What the directory of a run of expert backends holds."""

    directory: Path
    manifest: ExecutionManifest
    lines: tuple[Line[CellResult], ...]

    @property
    def cells(self) -> tuple[CellResult, ...]:
        return tuple(line.value for line in self.lines if line.value is not None)

    @property
    def problems(self) -> tuple[str, ...]:
        """Lines that could not be read: file, line number, reason."""
        return tuple(line.problem for line in self.lines if line.problem)


def load_manifest(directory: Path) -> ExecutionManifest:
    """The manifest of a run of expert backends.

    Raises:
        ValueError: none there, or of another kind of run, damaged or ill-typed.
    """
    table = read_manifest(directory)
    if run_kind(table) != "experts":
        raise ValueError(f"{directory}: found a run of routers, expected one of expert backends")
    return decode(ExecutionManifest, table, str(directory / MANIFEST))


def load_results(directory: Path) -> KeptCells:
    """Read a run's directory without changing it; damaged lines are problems.

    Raises:
        ValueError: no such run there, or its files cannot be read.
    """
    manifest = load_manifest(directory)
    sealed = manifest.schema >= SEALED_SINCE
    lines = read_lines(directory / CELLS, CellResult, all_sealed=sealed)
    return KeptCells(directory, manifest, tuple(map(_checked, lines)))


def _checked(line: Line[CellResult]) -> Line[CellResult]:
    """The line, or what is wrong with it, if no table can be made of its cell."""
    if line.value is None:
        return line
    cell = line.value
    try:
        cell.plan.spec()
        times = [*cell.limits.values()]
        times += [[s for *_, s in found] for m in cell.samples.values() for found in m.values()]
        if not all(each and all(0 < seconds < 1e9 for seconds in each) for each in times):
            raise ValueError("samples, limits: found a time that no clock can give")
        reads = [name for name in cell.limits if name.startswith("read ")]
        if not reads or f"matmul {cell.plan.dtype}" not in cell.limits:
            raise ValueError("limits: expected those of a matmul and of reading")
        for name in cell.limits:
            if name not in PROBE_WORK:
                raise ValueError(f"limits: unknown {name!r}{nearest(name, PROBE_WORK)}")
        for what, mixes in cell.samples.items():
            for mix in mixes:
                if not cell.loads.get(mix) or cell.num_steps.get(f"{what}, {mix}", 0) < 1:
                    raise ValueError(f"loads, num_steps: expected those of {what}, {mix}")
    except ValueError as error:
        return Line(line.raw, line.where, None, f"{line.where}: {error}; skipped")
    return line
