"""Records of measured instruments and of training: the figures, and where they are from.

    results/selftest/<machine>/<UTC time>-<commit>.json       python -m moebench.doctor --selftest
    results/instruments/<machine>/<UTC time>-<commit>-*.json  python tests/bench_instruments.py ...
    results/training/<machine>/<UTC time>-<commit>.json       python tests/bench_training.py ...

Beside each lies its table in Markdown. No record holds a host name or a path.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from moebench.files import make_folder, replace_file
from moebench.measure.environment import describe_machine, machine_folder
from moebench.records.checksum import write_document
from moebench.records.manifest import run_id
from moebench.spec.schema import decode, encode

SCHEMA = 1
CIRCUMSTANCES = "circumstances"
VERSIONS = ("moebench", "torch", "python", "numpy")


@dataclass(frozen=True)
class Circumstances:
    """Where, when and with which software something was measured."""

    run: str
    """Time and commit, as in the folder names of suites' runs."""
    command: str
    machine: str
    """Folder name of the machine, such as "amd-epyc-2-cores"."""
    model: str
    """Name of the processor or GPU as its maker writes it."""
    taken_at: str
    """UTC at the start, ISO 8601."""
    commit: str | None
    """Git commit, with "-dirty" where files differed from it; None outside a checkout."""
    versions: Mapping[str, str]
    num_threads: int
    num_cores: int
    load_average: tuple[float, ...]
    """Mean number of runnable processes over 1, 5 and 15 minutes before the start, or empty."""

    def __str__(self) -> str:
        load = ", ".join(f"{value:.2f}" for value in self.load_average) or "not known"
        return (
            f"{self.model}, {self.num_threads} threads on {self.num_cores} cores, torch "
            f"{self.versions.get('torch')}, {self.taken_at}, commit {self.commit}, load average "
            f"{load} at the start"
        )


def circumstances(command: str, device: torch.device) -> Circumstances:
    """Circumstances of this process now: to be taken before the measurement loads the machine."""
    load = os.getloadavg() if hasattr(os, "getloadavg") else ()
    started = datetime.now(UTC)
    environment = describe_machine(device)
    cpu, gpu, software = environment.cpu, environment.gpu, environment.software
    return Circumstances(
        run=run_id(started, software.commit),
        command=command,
        machine=machine_folder(environment),
        model=gpu.name if gpu else cpu.model,
        taken_at=started.isoformat(timespec="seconds"),
        commit=software.commit and software.commit + "-dirty" * bool(software.dirty),
        versions={name: getattr(software, name) for name in VERSIONS},
        num_threads=software.num_threads,
        num_cores=cpu.num_cores,
        load_average=tuple(round(value, 2) for value in load),
    )


def make_record(results: Mapping[str, Any], where: Circumstances) -> dict[str, Any]:
    """The JSON document of a measurement; the keys of `results` stand at its top level."""
    return {"schema": SCHEMA, CIRCUMSTANCES: encode(where), **results}


def write_record(folder: Path, record: Mapping[str, Any], table: str, suffix: str = "") -> Path:
    """Write a record, and its table beside it; returns the record's file."""
    where = decode(Circumstances, record[CIRCUMSTANCES], CIRCUMSTANCES)
    path = folder / where.machine / f"{where.run}{suffix}.json"
    make_folder(path.parent)
    write_document(path, record)
    replace_file(path.with_suffix(".md"), table.encode())
    return path
