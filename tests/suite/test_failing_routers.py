"""Routers from outside of moebench that fail: a row of failure, or one line before a run."""

import json
import sys
from pathlib import Path

import pytest
from suite_runs import measure, run_of

from moebench.suite.cli import main

pytestmark = pytest.mark.usefixtures("calibrated")
ROUTERS = '''
"""Routers that fail, outside of moebench."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from moebench.routers.top_k.policy import TopK
from moebench.routers.top_k.module import build


@dataclass(frozen=True)
class Raising(TopK):
    name: ClassVar[str] = "raising"
    builder: ClassVar[str] = "failing_routers:build_raising"


@dataclass(frozen=True)
class Greedy(TopK):
    name: ClassVar[str] = "greedy"
    builder: ClassVar[str] = "failing_routers:build_greedy"


def build_raising(*arguments):
    routers = build(*arguments)
    for router in routers:
        router.choose = route_wrongly
    return routers


def route_wrongly(scores):
    raise LookupError("no expert speaks <b>this</b> language")


def build_greedy(*arguments):
    routers = build(*arguments)
    for router in routers:
        router.choose = lambda scores: torch.empty(2**45)
    return routers
'''


def with_router(suite: str, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The toy suite with one more router, which lies in a module outside of moebench."""
    (folder / "failing_routers.py").write_text(ROUTERS)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "failing_routers", raising=False)
    path = Path(suite)
    entry = f'[[router]]\nname = "failing_routers:{name}"\nlabel = "mine"\n\n[[workload]]'
    path.write_text(path.read_text().replace("[[workload]]", entry, 1))
    return suite


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("Raising", "error", "LookupError: no expert speaks <b>this</b> language"),
        pytest.param(
            "Greedy",
            "out-of-memory",
            "RuntimeError: [enforce fail at alloc_cpu.cpp",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_router_that_fails_is_a_failure_row_that_says_where_and_the_others_go_on(
    name: str,
    kind: str,
    message: str,
    suite: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_router(suite, name, tmp_path, monkeypatch)
    assert measure(suite, tmp_path / "results") == 3
    run = run_of(tmp_path / "results")
    assert len(run.records) == 6 and len(run.failures) == 2
    for failure in run.failures:
        assert failure.kind == kind and failure.message.startswith(message)
        assert "failing_routers.py" in failure.details["raised"][-1]
        assert str(tmp_path) not in json.dumps(failure.details)
    html = (run.directory / "report.html").read_text()
    assert "<b>this" not in html and (kind != "error" or "&lt;b&gt;this" in html)


def test_code_from_outside_runs_only_where_the_users_own_suite_names_it(
    suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from moebench.predict.cli import main as predict
    from moebench.suite.suite_file import load_suite

    with_router(suite, "Raising", tmp_path, monkeypatch)
    assert predict(["--router", "failing_routers:Raising"]) == 2
    assert "unknown router 'failing_routers:Raising'" in capfd.readouterr().err
    monkeypatch.setattr("moebench.suite_files.suite_directory", lambda: tmp_path)
    with pytest.raises(ValueError, match="unknown router 'failing_routers:Raising'"):
        load_suite("one-cell")
    assert "failing_routers" not in sys.modules
    assert load_suite(suite).policies[-1].name == "raising"
    assert "failing_routers" in sys.modules


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere:Mine", "router 'nowhere:Mine' cannot be imported: ModuleNotFoundError"),
        ("json:Mine", "router 'json:Mine' cannot be imported: AttributeError"),
        ("json:loads", "router 'json:loads': expected a Policy that names its `builder`"),
        (":", "router ':' cannot be imported: ValueError"),
    ],
)
def test_a_router_that_cannot_be_imported_is_one_line(
    name: str, message: str, suite: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = Path(suite)
    path.write_text(path.read_text().replace('name = "ada-k"', f'name = "{name}"'))
    assert main([suite, "--predict", "h100-sxm"]) == 2
    said = capfd.readouterr().err
    assert message in said and said.count("\n") == 1
