"""What a clumsy user gets: one line that names the option or the file, and exit code 2."""

import importlib
from pathlib import Path

import pytest

from moebench import terminal
from moebench.experts import avx512
from moebench.suite import cli as suite

ROOT = Path(__file__).resolve().parents[1]
TABLE = "system,m,n,k,latency_us\nl40s,64,4096,4096,50\n"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("validate text.csv", "text.csv: found the columns 'hello', expected those of a table of"),
        ("validate gemm.csv --plot text.csv", "text.csv: cannot be written: found a file"),
        ("validate folder", "folder: cannot be read: Is a directory"),
        ("calibrate --from nowhere.csv", "nowhere.csv: cannot be read: No such file"),
        ("calibrate --from gemm.csv --out text.csv", "text.csv: cannot be written: found a file"),
        ("calibrate --from gemm.csv --intervals", "--intervals: found tables of gemm, expected"),
        ("predict --skew 1e9", "--skew: found 1000000000.0, expected 0 to 16"),
        ("predict --context 99999999999", "--context: found 99999999999, expected 1 to"),
        ("report nowhere", "nowhere: not a run: no such directory"),
        ("report text.csv", "text.csv: not a run: found a file, expected the directory"),
        ("report folder", "folder: not a run: no manifest.json; did you mean folder/a/b/c?"),
        ("compare folder/a/b/c folder", "manifest.json: found a list, expected a table"),
        ("suite smoke --device cpu --out text.csv", "text.csv: cannot be written: found a file"),
        ("suite experts --time-budget soon", "--time-budget: found 'soon', expected a string"),
        ("doctor --selftest --time-budget 9", "--time-budget: found no unit in '9', expected"),
        ("doctor --out folder", "--out: only beside --selftest"),
    ],
)
def test_a_mistake_is_one_line(
    command: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.csv").write_text("hello\n")
    Path("gemm.csv").write_text(TABLE)
    Path("folder/a/b/c").mkdir(parents=True)
    Path("folder/a/b/c/manifest.json").write_text("[1]")
    verb, *arguments = command.split()
    assert importlib.import_module(f"moebench.{verb}").main(arguments) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("error: ") and err.count("\n") == 1
    assert said in err


def test_a_note_on_a_stand_in_comes_after_what_can_refuse_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.csv").write_text("hello\n")
    monkeypatch.setattr(avx512, "missing", lambda device: "this processor has AMX")
    assert suite.main(["smoke", "--device", "cpu", "--out", "text.csv"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: text.csv: cannot be written") and err.count("\n") == 1


def test_ctrl_c_is_a_word_and_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> int:
        raise KeyboardInterrupt

    assert terminal.run(main) == 130
    assert capsys.readouterr().err == "interrupted\n"
