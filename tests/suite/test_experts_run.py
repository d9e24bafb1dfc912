"""The suite from end to end at toy size, interrupted and taken up again."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from moebench.records.experts_run import load_experts_run
from moebench.suite.cli import main
from moebench.suite.experts_plan import load_experts_suite, planned_cells
from moebench.suite.experts_time import SLOW_ROUNDS
from moebench.suite.workers import Workers

SUITE = (Path(__file__).parent / "toy.toml").read_text(encoding="utf-8")


def written(tmp_path: Path, text: str = SUITE) -> Path:
    path = tmp_path / "toy.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_full_has_what_the_default_has_and_more(tmp_path: Path) -> None:
    suite = load_experts_suite(str(written(tmp_path)))
    quick, full = (planned_cells(suite, is_full) for is_full in (False, True))
    assert [(c.phase, c.num_tokens) for c in quick] == [
        ("forward", 1),
        ("forward", 8),
        ("train", 8),
    ]
    assert {c.key for c in quick} < {c.key for c in full}
    assert [len(c.mixes) for c in quick] == [1, 3, 1]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"packed"', '"pakced"', "backends: unknown 'pakced'; did you mean 'packed'?"),
        ('"ada-k"', '"adak"', "routers: unknown 'adak'; did you mean 'ada-k'?"),
        ('"geometric"', '"geometrik"', "mixes: unknown 'geometrik'; did you mean 'geometric'?"),
        ("rounds = 6", "rounds = 0", "rounds: found 0, expected at least 1"),
    ],
)
def test_what_is_not_known_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        load_experts_suite(str(written(tmp_path, SUITE.replace(old, new))))
    assert message in str(error.value)


def test_a_backend_that_is_not_here_must_not_be_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(written(tmp_path)), "--experts", "sonicmoe", "--out", str(tmp_path)]) == 2
    assert "'sonicmoe' does not run here: sonicmoe is not installed" in capsys.readouterr().err


def test_options_of_other_suites_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(written(tmp_path)), "--only", "ada-k", "--out", str(tmp_path)]) == 2
    assert "--only: not for a suite of expert backends" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_was_cut_off_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(written(tmp_path)), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    (directory,) = (tmp_path / "out" / "toy").glob("*/*")
    whole = load_experts_run(directory).cells
    assert [cell.plan.num_tokens for cell in whole] == [1, 8, 8]
    assert set(whole[1].samples) == {"grouped", "packed", "router ada-k"}
    # Under load an entry may seem slow, and slow ones run fewer rounds.
    rounds = {len(s) for mixes in whole[1].samples.values() for s in mixes.values()}
    assert rounds <= {1, SLOW_ROUNDS, 6}
    assert json.loads((directory / "manifest.json").read_text())["absent"] == {
        "sonicmoe": "sonicmoe is not installed"
    }
    out = capsys.readouterr().out
    assert "## Mixtral / 64, train, 8 tokens, bfloat16" in out
    assert "## The figures asked" in out
    assert (directory / "execution.png").stat().st_size > 10_000

    cells = directory / "cells.jsonl"
    kept = cells.read_text().splitlines(keepends=True)
    cells.write_text(kept[0] + kept[1][:40])  # as a crash leaves it
    assert main(["--resume", str(directory)]) == 0
    again = load_experts_run(directory).cells
    assert [cell.plan.key for cell in again] == [cell.plan.key for cell in whole]
    assert again[0] == whole[0]


def test_a_death_of_the_shared_process_is_one_line_that_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = Workers.ask

    def dying(workers: Workers, what: str, name: str, *arguments: Any) -> Any:
        if what == "read sum":
            raise RuntimeError("the process of read sum died")
        return real(workers, what, name, *arguments)

    monkeypatch.setattr(Workers, "ask", dying)
    assert main([str(written(tmp_path)), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 2
    (directory,) = (tmp_path / "out" / "toy").glob("*/*")
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith(f"go on with: python -m moebench.suite --resume {directory}")
    assert "Mixtral / 64, forward, 1 tokens, bfloat16: the process of read sum died" in said


def test_reading_the_suite_needs_no_torch() -> None:
    program = (
        "import sys; from moebench.suite.experts_plan import load_experts_suite, planned_cells\n"
        "suite = load_experts_suite('experts')\n"
        "print(len(planned_cells(suite, True)) > 0, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "True False\n", done.stderr
