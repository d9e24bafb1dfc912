"""A run's manifest says its kind and its command line, also where an older moebench wrote it."""

import shlex
from pathlib import Path

import pytest

from moebench.records.manifest import read_manifest, recorded_arguments, run_kind

RESULTS = Path(__file__).resolve().parents[2] / "results"
RUNS = [
    path.parent
    for suite in ("experts", "mixtral")
    for path in sorted((RESULTS / suite).glob("*/*/manifest.json"))
]


@pytest.mark.parametrize("directory", RUNS, ids=lambda path: path.name)
def test_committed_runs_have_a_kind_and_can_be_taken_up(directory: Path) -> None:
    manifest = read_manifest(directory)
    suite = directory.parent.parent.name
    assert run_kind(manifest) == ("experts" if suite == "experts" else "routers")
    arguments = recorded_arguments(directory)
    assert arguments[0] == suite
    assert shlex.join(["python", "-m", "moebench.suite", *arguments]) == manifest["command"]


@pytest.mark.parametrize(
    ("manifest", "kind"),
    [
        ({"kind": "experts"}, "experts"),
        ({"kind": "routers", "absent": {}}, "routers"),
        ({"absent": {}}, "experts"),
        ({}, "routers"),
    ],
)
def test_a_manifest_without_a_kind_is_of_expert_backends_if_it_names_absent_ones(
    manifest: dict[str, object], kind: str
) -> None:
    assert run_kind(manifest) == kind
