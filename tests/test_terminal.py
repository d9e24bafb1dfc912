"""What verbs print: aligned tables, one line for an error, and no escape codes out of files."""

import importlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import write_run

from moebench import terminal
from moebench.records.checksum import read_document, write_document
from moebench.terminal import text_table

RED = "\x1b[31m"
NOT_FREE = (
    "schema",
    "kind",
    "cells",
    "status",
    "started_at",
    "finished_at",
    "hardware",
    "fingerprint",
)
"""Parts of a manifest whose text is checked when it is read, and so cannot hold anything else."""


def coloured(value: Any) -> Any:
    """The table with an escape code before every text in it."""
    if isinstance(value, dict):
        return {k: v if k in NOT_FREE else coloured(v) for k, v in value.items()}
    if isinstance(value, list):
        return [coloured(v) for v in value]
    return f"{RED}{value}" if isinstance(value, str) else value


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose texts are harmless."""
    return write_run(tmp_path_factory.mktemp("plain"), (("decode", 1, 1, 1024),))


@pytest.fixture(scope="module")
def hostile(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an escape code in every text of its manifest."""
    directory = tmp_path_factory.mktemp("hostile") / "run"
    shutil.copytree(plain, directory)
    path = directory / "manifest.json"
    write_document(path, coloured(read_document(path)))
    return directory


def test_a_manifests_escape_codes_never_reach_the_terminal(
    plain: Path, hostile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, good = str(hostile), str(plain)
    commands: dict[str, Callable[[int | None], bool]] = {
        f"compare {bad} {good}": lambda code: code == 2,
        f"compare {good} {bad} --force": lambda code: code == 0,
        f"compare {good} {bad} --force --json": lambda code: code == 0,
        f"report {bad}": lambda code: code == 0,
        f"report {bad} --json": lambda code: code == 0,
        f"suite --resume {bad}": lambda code: code == 2,
        f"validate --run {bad}": lambda code: code in (0, 1),
        f"validate --run {bad} --earlier {good}": lambda code: code == 2,
    }
    for command, is_expected in commands.items():
        verb, *arguments = command.split()
        try:
            code = importlib.import_module(f"moebench.{verb}").main(arguments)
        except SystemExit as left:
            code = left.code
        said = "".join(capsys.readouterr())
        assert is_expected(code) and said, f"{command}: {code}: {said}"
        assert "\x1b" not in said, command


def test_a_command_out_of_a_manifest_is_refused_without_its_escape_codes(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(plain, tmp_path / "run")
    path = tmp_path / "run" / "manifest.json"
    command = f"python -m moebench.suite smoke --{RED}"
    write_document(path, read_document(path) | {"command": command})
    with pytest.raises(SystemExit):
        importlib.import_module("moebench.suite").main(["--resume", str(path.parent)])
    said = capsys.readouterr().err
    assert "unrecognized arguments: --\\x1b[31m" in said and "\x1b" not in said


def test_what_an_unchanged_run_said_is_escaped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from moebench.doctor import main

    failed = subprocess.CompletedProcess("", 2, "", f"error: {RED}found")
    monkeypatch.setattr("moebench.doctor.unchanged.subprocess.run", lambda *_, **__: failed)
    assert main(["--device", "cpu", "--aa-runs", "1"]) == 2
    said = "".join(capsys.readouterr())
    assert "error: \\x1b[31mfound" in said and f"{RED}found" not in said


def test_the_exit_of_a_mistake_is_one_line_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    def mistake() -> int:
        raise ValueError(f"file:\n{RED}line")

    assert terminal.run(mistake) == 2
    assert capsys.readouterr().err == "error: file:\\n\\x1b[31mline\n"


def test_a_table_is_aligned_and_its_cells_cannot_leave_their_line() -> None:
    rows = [("a", "1.25", "same"), "", "decode, batch 1", (f"b{RED}\n", "10", "slower")]
    assert text_table(("case", "time\nratio", "verdict"), rows, left=(0, 2)).split("\n") == [
        "              time",
        "case         ratio  verdict",
        "a             1.25  same",
        "",
        "decode, batch 1",
        "b\\x1b[31m\\n     10  slower",
    ]
