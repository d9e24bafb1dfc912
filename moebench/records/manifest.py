"""The manifest of a run: what was run, where, and how to repeat it."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from moebench.records.checksum import check_schema, read_document
from moebench.records.record import SCHEMA
from moebench.spec.hardware import HardwareSpec
from moebench.spec.model import ModelSpec
from moebench.spec.schema import decode
from moebench.units import Seconds
from moebench.version import VERSION

MANIFEST = "manifest.json"
RunKind = Literal["routers", "experts"]
"""What the cases of a run differ in: routers, or the backends that execute experts."""
Status = Literal["running", "done", "interrupted"]


@dataclass(frozen=True)
class PlannedCell:
    """A cell and the keys of its cases, in the order in which they are planned."""

    key: str
    cases: tuple[str, ...]


@dataclass(frozen=True)
class CheckpointUse:
    """Layers of a checkpoint that a run used."""

    name: str
    """Name of its folder or repository."""
    sha256: str
    """Hash of the config, of the place of every tensor, and of the routers of these layers."""
    layers: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class RunManifest:
    """What the manifests of both kinds of run say: enough to repeat the run."""

    run: str
    """`run_id` of the start and the commit."""
    suite: str
    suite_sha256: str
    """Checksum of the suite file's text."""
    suite_text: str | None = None
    """None before schema 4."""
    models: Mapping[str, ModelSpec] = field(default_factory=dict)
    """Models of the suite, by the name that it gives them; empty before schema 4."""
    title: str
    command: str
    """Command that repeats the run."""
    argv: tuple[str, ...] | None = None
    """The command line behind `python -m moebench.suite`; None before schema 3."""
    environment: Mapping[str, Any]
    """Facts of the machine and its software, as a plain table."""
    started_at: str
    schema: int = SCHEMA

    @property
    def fingerprint(self) -> Any:
        """Identifies machine and software; None where the manifest does not say."""
        return self.environment.get("fingerprint")


@dataclass(frozen=True, kw_only=True)
class Manifest(RunManifest):
    """Everything that is needed to repeat a run of routers and to read its numbers."""

    machine: str
    """Name of the CPU or GPU model; never a host name."""
    hardware: HardwareSpec
    """Machine of the predictions."""
    calibration: Mapping[str, Any]
    """Facts of the calibration, with its own error."""
    device: str
    dtype: str
    versions: Mapping[str, str]
    commit: str | None
    """Git commit, with "-dirty" where files differed from it; None outside a checkout."""
    seed: int
    baseline: str
    """Title of the router that speedups are relative to."""
    budget: Seconds | None
    """Time budget of the suite; None: no limit."""
    checkpoint: CheckpointUse | None = None
    """Where the layers' weights come from; None: they are random."""
    cells: tuple[PlannedCell, ...]
    finished_at: str | None = None
    status: Status = "running"
    resumed_at: tuple[str, ...] = ()
    noise_floor: float | None = None
    """Relative half width of the speedup of a case against itself; None: not measured."""
    kind: Literal["routers"] = "routers"


def run_id(started: datetime, commit: str | None) -> str:
    """Identifier of a run that sorts by time, "20261122T130501Z-cb3f0b3"; or with the version."""
    return f"{started.astimezone(UTC):%Y%m%dT%H%M%SZ}-{(commit or f'v{VERSION}')[:9]}"


def now() -> str:
    """The present time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a run of either kind, as a plain table."""
    path = directory / MANIFEST
    if not path.exists():
        levels = (f"{'*/' * n}{MANIFEST}" for n in (1, 2, 3))
        inside = sorted(found.parent for level in levels for found in directory.glob(level))
        more = f"; did you mean {inside[-1]}?" if inside else ""
        why = f"no {MANIFEST}{more}" if directory.is_dir() else "no such directory"
        if directory.is_file():
            why = f"found a file, expected the directory that holds its {MANIFEST}"
        raise ValueError(f"{directory}: not a run: {why}")
    table = read_document(path)
    check_schema(table, str(path))
    return table


@dataclass(frozen=True)
class RecordedSuite:
    """The suite of a run, as its manifest keeps it."""

    name: str
    sha256: str
    text: str | None
    models: Mapping[str, ModelSpec]


def recorded_suite(directory: Path) -> RecordedSuite:
    """The suite that a run of either kind was started with."""
    table, where = read_manifest(directory), str(directory / MANIFEST)
    names = {"name": "suite", "sha256": "suite_sha256", "text": "suite_text", "models": "models"}
    found = {ours: table.get(theirs) for ours, theirs in names.items()}
    return decode(RecordedSuite, found | {"models": found["models"] or {}}, where)


def run_kind(manifest: Mapping[str, Any]) -> RunKind:
    """Kind of a run; before schema 3, which has the key, only expert backends' have "absent"."""
    kind = manifest.get("kind", "experts" if "absent" in manifest else "routers")
    return "experts" if kind == "experts" else "routers"


def recorded_arguments(directory: Path) -> list[str]:
    """The command line that started a run; before schema 3 routers' runs have it as `command`."""
    table = read_manifest(directory)
    if table.get("argv") is not None:
        return [*decode(tuple[str, ...], table["argv"], f"{directory / MANIFEST}.argv")]
    try:
        return shlex.split(str(table.get("command", "")))[3:]
    except ValueError as error:
        raise ValueError(f"{directory}: {MANIFEST}: command: {error}") from error
