"""The README and docs/ are true: commands run, tables are those of records, links lead on."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from doctor.instrument_records import read_record, table_rows

from moebench.spec.schema import decode

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    path: path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
INSTRUMENTS = PAGES[ROOT / "docs" / "instruments.md"]
QUICK = ("--list", "--predict", "--help", "--version", "moebench.predict")
"""Options with which nothing is built, calibrated or measured."""


def commands() -> list[str]:
    """Every command of the pages, from their shell blocks and their code spans, once each."""
    text = "\n".join(PAGES.values())
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line.partition("#")[0] for block in blocks for line in block.splitlines()]
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    parts = [part.strip() for line in (*lines, *spans) for part in line.split("&&")]
    starts = ("make ", "python -m moebench")
    ours = ("VERB", "low-rank")
    whole = (
        part for part in parts if part.startswith(starts) and not any(word in part for word in ours)
    )
    return list(dict.fromkeys(whole))


TARGETS = [command.split()[1] for command in commands() if command.startswith("make ")]
LINES = [command for command in commands() if command.startswith("python ")]
SMOKE = "python -m moebench.suite smoke"
ABOUT_A_TABLE = [line for line in LINES if line.endswith(" TABLE")]
ABOUT_A_RUN = [line for line in LINES if line.endswith((" RUN", " RUN_B"))]
TRAINING = [line for line in LINES if "moebench.train " in line]
SHORT = {
    "base": "--tokens 8192",
    "ada-k": "--tokens 49152 --warm-steps 10",
    "adamoe": "--tokens 8192",
    "rmoe": "--tokens 8192",
    "regression-k": "--tokens 24576",
}
"""Budgets of a few steps in place of a training's own."""
TOO_LONG = ("--selftest", "--first-run", "suite pareto", "--checkpoint PATH")
"""Minutes by design, a GPU's or a checkpoint's: tests of their rooms run them in small."""
OTHERS = ("--help", "--checkpoint", " prose ", " export ")
"""What `train` does besides training a small model; tests/train runs each."""
MEASURING = [
    line
    for line in LINES
    if line not in (SMOKE, *ABOUT_A_RUN, *ABOUT_A_TABLE, *TRAINING)
    and not any(option in line for option in QUICK)
    and ("--dry-run" in line or not any(option in line for option in TOO_LONG))
]
INSTEAD = {
    "suite mixtral": "suite smoke",
    "suite experts-training": "suite toy.toml",
    "suite experts": "suite toy.toml",
    "path/to/mine.toml": "mine.toml",
}
"""What runs in place of what takes minutes or is the reader's own."""
BUSY = 1200
"""Seconds: a machine that does other things calibrates again and again."""


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run one of the README's command lines with the smallest suites, in a folder of its own."""
    shutil.copy(ROOT / "suites" / "smoke.toml", folder / "mine.toml")
    shutil.copy(ROOT / "tests" / "suite" / "toy.toml", folder / "toy.toml")
    for long, small in INSTEAD.items():
        command = command.replace(long, small)
    words = shlex.split(command)
    assert words[0] == "python"
    return subprocess.run(
        [sys.executable, *words[1:]],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=BUSY / 2,
    )


def test_the_readme_shows_its_two_commands() -> None:
    assert commands()[:2] == ["make mixtral", "make test"]
    assert SMOKE in LINES and len(ABOUT_A_RUN) == 3


@pytest.mark.parametrize("target", TARGETS)
def test_a_make_target_of_the_pages_exists(target: str) -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", [line for line in LINES if any(q in line for q in QUICK)])
def test_a_command_of_the_pages_that_only_computes_runs(line: str, tmp_path: Path) -> None:
    done = run(line, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run of the smoke suite, started as the README says."""
    folder = tmp_path_factory.mktemp("measured")
    done = run(SMOKE, folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    (manifest,) = folder.glob("results/smoke/*/*/manifest.json")
    return manifest.parent


@pytest.mark.slow
@pytest.mark.timeout(BUSY)
@pytest.mark.parametrize("line", MEASURING)
def test_a_command_of_the_pages_that_measures_runs(line: str, tmp_path: Path) -> None:
    done = run(line, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.slow
@pytest.mark.timeout(BUSY)
def test_the_trainings_run_one_after_the_other(tmp_path: Path) -> None:
    """Each with a budget of a few steps, the base first: the others start from it."""
    whole = [line for line in TRAINING if not any(other in line for other in OTHERS)]
    assert [line.split()[3] for line in whole] == list(SHORT)
    for line in whole:
        (base,) = [*tmp_path.glob("results/train/tiny-base-*")] or ["none yet"]
        done = run(f"{line.replace('BASE', str(base))} {SHORT[line.split()[3]]}", tmp_path)
        assert done.returncode == 0, done.stderr
        assert "done" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(BUSY)
@pytest.mark.parametrize("line", ABOUT_A_RUN)
def test_a_command_of_the_pages_about_a_run_works(line: str, measured: Path) -> None:
    done = run(re.sub(r" RUN(_[AB])?\b", f" {shlex.quote(str(measured))}", line), measured.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("line", ABOUT_A_TABLE)
def test_a_command_of_the_pages_about_a_table_asks_for_one(line: str, tmp_path: Path) -> None:
    done = run(line, tmp_path)
    assert done.returncode == 2
    assert "TABLE" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    for name in re.findall(r"(?<!`)\]\(([^)#:]+)\)", PAGES[page]):
        assert (page.parent / name).exists(), name
    for name in re.findall(r"^(moebench/\S+|suites|results)  ", PAGES[page], re.MULTILINE):
        assert (ROOT / name).exists(), name


def test_the_layout_names_every_room() -> None:
    rooms = {path.name for path in (ROOT / "moebench").iterdir() if path.is_dir()} - {"__pycache__"}
    assert rooms == set(re.findall(r"^moebench/(\w+)  ", README, re.MULTILINE))


def block(page: str, name: str) -> str:
    """What stands between <!-- NAME --> and <!-- /NAME -->."""
    assert page.count(f"<!-- {name} -->") == 1, f"{name} is not quoted once"
    return page[page.index(f"<!-- {name} -->") : page.index(f"<!-- /{name} -->")]


def linked_report(part: str) -> str:
    """The report that a part of the README links."""
    (link,) = re.findall(r"\[report\]\((results/[^)]+)/report.md\)", part)
    return (ROOT / link / "report.md").read_text(encoding="utf-8")


def test_losses_of_the_learned_routers_are_in_the_report_that_is_linked() -> None:
    part = block(README, "pareto")
    losses = re.findall(r"\d\.\d{4}", part)
    assert len(losses) > 15 and set(losses) <= set(re.findall(r"\d\.\d{4}", linked_report(part)))


def test_every_number_of_the_table_is_in_the_report_of_a_committed_run() -> None:
    """Rows are compared cell by cell with the report that the README links."""
    report = linked_report(block(README, "table"))
    section = report[report.index("### MoE layer") : report.index("### Decoder layer")]
    known: dict[tuple[str, str], set[str]] = {}
    workload = ""
    for cells in table_rows(section):
        workload = cells[0].strip("*") if cells[0].startswith("**") else workload
        known[workload, cells[0]] = {re.sub("[¹²³⁴⁵⁶⁷⁸⁹⁰˒]", "", cell) for cell in cells}
    shown = table_rows(block(README, "table"))
    assert len(shown) == 12
    for first, *cells in shown:
        begins = re.fullmatch(r"(?:\*\*(.+)\*\* )?(\S+)", first)
        assert begins is not None, first
        workload = begins[1] or workload
        missing = set(cells) - known[workload, begins[2]] - {""}
        assert not missing, f"{workload}, {begins[2]}: {missing} is in no record"


def test_the_lines_of_the_prediction_are_what_its_command_prints(tmp_path: Path) -> None:
    (line,) = re.findall(r"^python -m moebench\.predict .*$", README, re.MULTILINE)
    printed = [row.split() for row in run(line, tmp_path).stdout.splitlines()]
    rows = [row.split() for row in block(README, "predict").splitlines()[3:-1]]
    assert len(rows) == 5
    for row in rows:
        assert any(whole[: len(row)] == row for whole in printed), row


def test_the_python_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(program, "README.md", "exec"), {})  # noqa: S102 - our own page
    assert "times faster" in capsys.readouterr().out


def selftest_rows(path: Path) -> list[list[str]]:
    from moebench.doctor.selftest import Selftest
    from moebench.doctor.text import selftest_table

    where, results = read_record(path)
    return table_rows(selftest_table(decode(Selftest, results, path.name), where))


def overhead_rows(path: Path) -> list[list[str]]:
    from nvml.bench_overhead import table

    return table_rows(table(read_record(path)[1]))


def peers_rows(path: Path) -> list[list[str]]:
    from nvml.bench_peers import table

    return table_rows(table(read_record(path)[1]))


QUOTED = {
    "selftest": ("selftest/*/*.json", selftest_rows),
    "overhead": ("instruments/*/*-overhead.json", overhead_rows),
    "peers": ("instruments/*/*-peers.json", peers_rows),
}
"""Records of each block of a page, by its name: where they lie, and the rows of one of them."""


@pytest.mark.parametrize("name", QUOTED)
def test_what_a_page_says_of_the_instruments_is_in_the_record_that_it_links(name: str) -> None:
    """Between <!-- NAME --> and <!-- /NAME --> stand a record's table and a link to it."""
    where, rows = QUOTED[name]
    assert sorted((ROOT / "results").glob(where)), f"no record of {name} is committed"
    quoted = block(INSTRUMENTS, name)
    (link,) = re.findall(r"\]\(\.\./(results/\S+\.json)\)", quoted)
    assert table_rows(quoted) == rows(ROOT / link), f"not what {link} says"


@pytest.mark.slow
def test_the_router_of_the_pages_keeps_the_contract_file_by_file(tmp_path: Path) -> None:
    """The two files are written as they stand on the page, into a copy of the sources."""
    page = PAGES[ROOT / "docs" / "add-a-router.md"]
    files = re.findall(r"`(moebench/routers/\S+\.py)`.*?```python\n(.*?)```", page, re.DOTALL)
    assert len(files) == 2
    ignored = shutil.ignore_patterns("__pycache__")
    for folder in ("moebench", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name, text in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    priced, held = re.findall(r"^python (-m .*)$", page, re.MULTILINE)
    for line in (priced, held):
        done = subprocess.run(
            [sys.executable, *shlex.split(line)],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "low-rank" in done.stdout or " passed" in done.stdout
