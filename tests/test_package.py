"""The package as it is installed: its verbs, its data, its suites, its version."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path

import pytest

import moebench
from moebench.__main__ import USAGE, VERBS, main

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(moebench.__file__).parent


def test_every_module_with_a_main_is_a_verb() -> None:
    assert {path.parent.name for path in PACKAGE.glob("*/__main__.py")} == set(VERBS)
    assert {path.parent.name for path in PACKAGE.glob("*/cli.py")} == set(VERBS)


def test_an_unknown_verb_names_the_near_miss(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["siute"]) == 2
    assert "unknown verb 'siute'; did you mean 'suite'?" in capsys.readouterr().err


def test_help_lists_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert capsys.readouterr().out.strip() == USAGE
    assert main([]) == 2
    assert USAGE in capsys.readouterr().err


def test_the_version_is_the_installed_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"moebench {moebench.__version__}\n"
    try:
        installed = version("moebench")
    except PackageNotFoundError:
        pytest.skip("moebench is not installed here; it runs from the checkout")
    assert installed == moebench.__version__


def test_data_is_inside_the_package() -> None:
    data = files("moebench") / "data"
    assert {entry.name for entry in data.iterdir()} >= {"models", "hardware"}


def test_every_suite_file_is_toml() -> None:
    from moebench.spec.schema import read_toml

    for path in (ROOT / "suites").glob("*.toml"):
        assert read_toml(path)


def test_asv_pins_every_dependency_to_the_tested_version() -> None:
    text = (ROOT / "asv.conf.json").read_text(encoding="utf-8")
    config = json.loads(re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE))
    pinned = config["matrix"]["req"]
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    tested = dict(line.split("==") for line in constraints if "==" in line)
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    names = [re.split("[<>=]", line)[0] for line in needed["project"]["dependencies"]]
    post_releases = {name for name in names if ".post" in tested[name]}  # asv cannot pin them
    assert pinned == {name: ["" if name in post_releases else tested[name]] for name in names}


@pytest.mark.slow
def test_the_wheel_holds_data_and_suites_and_runs_from_any_directory(tmp_path: Path) -> None:
    """Built and installed into an environment of its own that sees this one's dependencies."""
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "results", "build", "*.egg*"))
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(tmp_path)]
    subprocess.run([*pip, str(source)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("moebench-*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    for folder, pattern, inside in (
        (PACKAGE / "experts" / "cpu", "*.cpp", "moebench/experts/cpu"),
        (PACKAGE / "experts" / "cpu", "*.h", "moebench/experts/cpu"),
        (PACKAGE / "report", "*.css", "moebench/report"),
        (PACKAGE / "report" / "figures", "*.mplstyle", "moebench/report/figures"),
        (ROOT / "suites", "*.toml", "moebench/suites"),
        (PACKAGE / "data" / "models", "*.toml", "moebench/data/models"),
        (PACKAGE / "data" / "hardware", "*.toml", "moebench/data/hardware"),
    ):
        expected = {f"{inside}/{path.name}" for path in folder.glob(pattern)}
        assert expected and expected <= held

    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    site = next((environment / "lib").glob("python*")) / "site-packages"
    zipfile.ZipFile(wheel).extractall(site)
    own = Path(sys.executable).parent.parent / "lib" / site.parent.name / "site-packages"
    (site / "dependencies.pth").write_text(f"{own}\n", encoding="utf-8")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def printed(*arguments: str) -> str:
        done = subprocess.run(
            [str(python), *arguments], cwd=elsewhere, env=clean, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = printed("-c", "import moebench; print(moebench.__file__)")
    assert Path(where.strip()).is_relative_to(environment)
    # Sources of the kernels for processors, and their headers.
    folder = Path("experts") / "cpu"
    needed = {path.name for path in (ROOT / "moebench" / folder).glob("*.[ch]*")}
    assert needed == {path.name for path in (Path(where.strip()).parent / folder).glob("*.[ch]*")}
    listing = printed("-m", "moebench.suite", "--list")
    for path in (ROOT / "suites").glob("*.toml"):
        assert path.stem in listing
