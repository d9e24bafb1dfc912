"""A/A runs: an unchanged cell run again and again, each time in a process of its own."""

import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import torch
from tqdm import trange

from moebench.compare.noise import UnchangedRun, add_unchanged_run
from moebench.compare.runs import relative_latency
from moebench.compare.state import footprints
from moebench.records.run import load_run
from moebench.streams import NOTES

UNCHANGED = ("smoke", "--only", "ada-k", "--time-budget", "25 s")
"""Options of the suite: all phases of its smallest cells under two routers."""


def make_unchanged_runs(
    number: int, device: torch.device, fingerprint: str
) -> tuple[Path, UnchangedRun]:
    """Run the unchanged cell `number` times; returns the file of all runs, and the last run."""
    if number < 1:
        raise ValueError(f"--aa-runs: found {number}, expected at least 1")
    for _ in trange(number, desc="A/A runs", unit="run", leave=False, file=NOTES):
        with tempfile.TemporaryDirectory() as folder:
            run = _unchanged_run(Path(folder), device)
        path = add_unchanged_run(fingerprint, run)
    return path, run


def _unchanged_run(folder: Path, device: torch.device) -> UnchangedRun:
    """One run in a fresh process, since the placement of memory and threads varies by process."""
    command = [sys.executable, "-m", "moebench.suite", *UNCHANGED, "--device", str(device)]
    done = subprocess.run([*command, "--out", str(folder)], capture_output=True, text=True)
    manifests = [*folder.glob("*/*/*/manifest.json")]
    if done.returncode != 0 or not manifests:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"an A/A run ended with exit code {done.returncode}: {last}")
    run = load_run(manifests[0].parent)
    records = {record.case.key: record for record in run.records}
    measurements = {r.case.key: r.measurement for r in run.records if r.measurement}
    versions = {m.reference.version for m in measurements.values() if m.reference}
    if len(versions) != 1:
        raise ValueError("an A/A run gave no latencies beside a reference operation")
    mixtures = footprints(records)
    assert mixtures is not None  # both are of this version of moebench
    return UnchangedRun(
        datetime.now(UTC).isoformat(timespec="seconds"),
        run.manifest.commit,
        versions.pop(),
        {key: relative_latency(m, mixtures[key]).value for key, m in measurements.items()},
        by_parts=True,
    )
