"""Measurements of the instruments themselves, kept so that a file says where its figures are from.

    results/selftest/<machine>/<UTC time>-<commit>.json       python -m moebench.doctor --selftest
    results/instruments/<machine>/<UTC time>-<commit>-*.json  the programs of tests/nvml

Beside each lies its table in Markdown, which the README quotes. No host name and no path.
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
from moebench.records.run import run_id
from moebench.records.seal import read_document, write_document
from moebench.spec.codec import decode, encode
from moebench.version import VERSION

SCHEMA = 1
CIRCUMSTANCES = "circumstances"


@dataclass(frozen=True)
class Circumstances:
    """Where, when and of what something was measured."""

    run: str
    """Time and commit, as runs of suites have them."""
    command: str
    machine: str
    """Folder name of the machine, as for runs of suites: "amd-epyc-2-cores"."""
    model: str
    """Of the processor or GPU, for people."""
    taken_at: str
    """UTC, ISO 8601, at the start."""
    commit: str | None
    """Git commit, with "-dirty" where files differed from it; None outside a checkout."""
    versions: Mapping[str, str]
    num_threads: int
    """Of torch."""
    num_cores: int
    load_average: tuple[float, ...]
    """Processes that wanted to run, mean over 1, 5 and 15 minutes, at the start; empty where the
    system does not say."""

    def __str__(self) -> str:
        load = ", ".join(f"{value:.2f}" for value in self.load_average) or "not known"
        return (
            f"{self.model}, {self.num_threads} threads on {self.num_cores} cores, torch "
            f"{self.versions.get('torch')}, {self.taken_at}, commit {self.commit}, load average "
            f"{load} at the start"
        )


def circumstances(command: str, device: torch.device) -> Circumstances:
    """Those of this process, now: call it before the measurement loads the machine.

    Args:
        command: what to type to repeat it.
        device: where is measured.
    """
    load = os.getloadavg() if hasattr(os, "getloadavg") else ()
    started = datetime.now(UTC)
    environment = describe_machine(device)
    cpu, gpu, software = environment.cpu, environment.gpu, environment.software
    commit = software.commit
    if commit is not None and software.dirty:
        commit = f"{commit}-dirty"
    return Circumstances(
        run=run_id(started, (software.commit or f"v{VERSION}")[:9]),
        command=command,
        machine=machine_folder(environment),
        model=gpu.name if gpu else cpu.model,
        taken_at=started.isoformat(timespec="seconds"),
        commit=commit,
        versions={
            "moebench": software.moebench,
            "torch": software.torch,
            "python": software.python,
            "numpy": software.numpy,
        },
        num_threads=software.num_threads,
        num_cores=cpu.num_cores,
        load_average=tuple(round(value, 2) for value in load),
    )


def evidence(found: Mapping[str, Any], where: Circumstances) -> dict[str, Any]:
    """The JSON document of what was found; its keys stand at the top."""
    return {"schema": SCHEMA, CIRCUMSTANCES: encode(where), **found}


def keep(folder: Path, document: Mapping[str, Any], table: str, suffix: str = "") -> Path:
    """Write the document, and its table beside it; returns the document's file.

    Raises:
        ValueError: it cannot be written there.
    """
    where = decode(Circumstances, document[CIRCUMSTANCES], CIRCUMSTANCES)
    path = folder / where.machine / f"{where.run}{suffix}.json"
    make_folder(path.parent)
    write_document(path, document)
    replace_file(path.with_suffix(".md"), table.encode())
    return path


def read_evidence(path: Path) -> tuple[Circumstances, dict[str, Any]]:
    """Circumstances of a kept document, and what was found.

    Raises:
        ValueError: it cannot be read, was changed, or does not say where it is from.
    """
    document = read_document(path)
    schema = document.pop("schema", None)
    if schema != SCHEMA:
        raise ValueError(f"{path}: found schema {schema!r}, expected {SCHEMA}")
    where = decode(Circumstances, document.pop(CIRCUMSTANCES, None), f"{path}: {CIRCUMSTANCES}")
    return where, document
