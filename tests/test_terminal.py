"""What verbs print: aligned tables, one line for an error, no escape codes, and never nothing."""

import errno
import importlib
import io
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import write_run

from moebench import terminal
from moebench.files import OutputError
from moebench.records.checksum import read_document, write_document
from moebench.terminal import text_table
from moebench.version import VERSION

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


def answered(command: str) -> int:
    """Exit code of a command line such as `predict --batch 1`."""
    verb, *arguments = command.split()
    code: int = importlib.import_module(f"moebench.{verb}").main(arguments)
    return code


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1"])
def test_an_encoding_that_lacks_our_characters_loses_no_answer(
    encoding: str, plain: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = ("predict --batch 1", "suite --list", f"validate --run {plain}")
    for command in (*commands, f"compare {plain} {plain}"):
        code = answered(command)
        expected = capsys.readouterr().out
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", stream)
            assert answered(command) == code
        found = stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
        assert len(found.splitlines()) == len(expected.splitlines()) > 0, command
        assert "\\" not in found or "\\" in expected, command


def test_the_stand_ins_are_those_of_the_table() -> None:
    line = "1.35× ± 2 % · 190 µs – ⚠ slow¹˒² → “a…” 模"
    assert line.encode("ascii", "moebench") == (
        b'1.35x +- 2 % - 190 us - ! slow[1,2] -> "a..." \\u6a21'
    )
    assert line[:12].encode("latin-1", "moebench").decode("latin-1") == line[:12]


class Full(io.StringIO):
    """A file on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def closed() -> io.TextIOWrapper:
    stream = io.TextIOWrapper(io.BytesIO())
    stream.close()
    return stream


STREAMS: dict[str, tuple[Callable[[], Any], str]] = {
    "full": (Full, "No space left on device"),
    "closed": (closed, "I/O operation on closed file"),
    "none": (lambda: None, "there is none"),
}


@pytest.mark.parametrize("kind", STREAMS)
def test_an_answer_that_stdout_does_not_take_is_on_stderr_with_an_exit_code_of_its_own(
    kind: str, plain: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither bad input (2) nor a check that failed (1); every line of the answer is there."""
    make, why = STREAMS[kind]
    for command in ("suite --list", f"validate --run {plain}", "predict --batch 1 --json"):
        answered(command)
        expected = capsys.readouterr().out
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", make())
            assert answered(command) == terminal.NOT_WRITTEN == 4
        first, _, rest = capsys.readouterr().err.partition("\n")
        assert first == f"error: stdout: cannot be written: {why}; the answer follows here"
        assert rest == expected


@pytest.mark.parametrize("to", [">/dev/full", ">&-", "2>/dev/full", "2>&-"])
def test_the_exit_code_of_a_process_is_its_answer_s(to: str) -> None:
    """The interpreter flushes both streams once more at its end, and has an exit code for that."""
    command = f"{shlex.quote(sys.executable)} -m moebench --version {to}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == (0 if to.startswith("2") else 4)
    assert f"moebench {VERSION}\n" in done.stdout + done.stderr


def test_help_is_an_answer_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from moebench.__main__ import main

    monkeypatch.setattr(sys, "stdout", None)
    for arguments in (["--help"], ["--version"], ["predict", "--help"]):
        assert main(arguments) == 4
        assert capsys.readouterr().err.count("\n") > 1


def test_a_reader_that_has_gone_is_silence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    with os.fdopen(theirs, "w") as pipe, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", pipe)
        assert answered("suite --list") == terminal.CLOSED
    assert capsys.readouterr().err == ""


def test_trouble_on_stderr_keeps_no_answer_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> int:
        with terminal.Bar(1.0) as bar:
            bar.tell("something")
        terminal.say("a note")
        terminal.show("the answer")
        return 0

    for stream in (None, Full(), closed()):
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stderr", stream)
            assert terminal.run(main) == 0
        assert capsys.readouterr().out == "the answer\n"


def test_a_file_on_a_full_disk_is_trouble_with_the_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figure = tmp_path / "speedup.png"
    figure.symlink_to("/dev/full")
    assert answered("predict --batch 1") == 0
    answer = capsys.readouterr().out
    assert answered(f"predict --batch 1 --plot {figure}") == terminal.NOT_WRITTEN
    out, err = capsys.readouterr()
    assert f"error: --plot {figure}: cannot be written: No space left" in err and "drawn" not in err
    assert out == answer


def test_a_report_that_cannot_be_written_is_shown_all_the_same(
    plain: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write_report(run: object) -> None:
        raise OutputError("report.md: cannot be written: No space left on device")

    monkeypatch.setattr("moebench.report.cli.write_report", write_report)
    assert answered(f"report {plain}") == terminal.NOT_WRITTEN
    out, err = capsys.readouterr()
    assert err == "error: report.md: cannot be written: No space left on device\n"
    assert "top-k" in out and "records" in out


@pytest.mark.parametrize(
    ("elapsed", "shown"),
    [
        (30.0, "25% |█████               | 0:30 of 2:00, 1:30 left | cell"),
        (119.9, "99% |███████████████████▊| 2:00 of 2:00, 0:00 left | cell"),
        (150.0, "99% |███████████████████▊| 2:30 of 2:00, 0:30 over | cell"),
    ],
)
def test_a_bar_is_full_only_when_the_work_has_ended(elapsed: float, shown: str) -> None:
    with terminal.Bar(120.0) as bar:
        bar.started -= elapsed
        bar.tell("cell")
        assert str(bar._bar).strip() == shown
        bar.expect(300.0)
        bar.tell("cell")
        assert " of 5:00" in str(bar._bar) and "100%" not in str(bar._bar)
