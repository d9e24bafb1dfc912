"""Runs of a suite on disk, as tests make, read and resume them."""

from pathlib import Path

from moebench.records.run import Run, load_run
from moebench.suite.cli import main


def run_of(results: Path) -> Run:
    (path,) = results.glob("*/*/*/manifest.json")
    return load_run(path.parent)


def keys(run: Run) -> list[str]:
    return [record.case.key for record in run.records]


def planned(run: Run) -> list[str]:
    return [case for cell in run.manifest.cells for case in cell.cases]


def measure(suite: str, results: Path, *more: str) -> int:
    return main([suite, "--device", "cpu", "--out", str(results), *more])


def resume(run: Run) -> int:
    return main(["--resume", str(run.directory)])
