"""A run whose joules are of the simulated library is recorded as simulated and never reported."""

import os
from pathlib import Path

import pytest
from nvml.simulator import UUID
from nvml.test_process import SHORT, scenario

from moebench.measure.energy import meter as instrument
from moebench.records.run import load_run
from moebench.report.cli import main as report
from moebench.suite.cli import main as suite_verb

pytestmark = pytest.mark.usefixtures("calibrated")


@pytest.fixture
def on_the_simulator(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs on the host is followed by a board's reader, on the simulated library."""
    source = ["gpu", UUID.format(0), str(os.getpid())]
    monkeypatch.setattr(instrument, "_packages", lambda root: source)
    monkeypatch.setattr(instrument, "QUICK", SHORT)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library.parent))


@pytest.mark.slow
@pytest.mark.usefixtures("on_the_simulator")
def test_simulated_joules_are_kept_as_simulated_and_refused_by_every_report(
    suite: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scenario(monkeypatch)
    one = Path(suite).read_text().replace("batch = [4, 8]", "batch = [4]")
    Path(suite).write_text(one)
    results = tmp_path / "results"
    budget = ["--only", "top-k", "--time-budget", "300 ms"]
    assert suite_verb([suite, "--device", "cpu", "--out", str(results), *budget]) == 0
    (manifest,) = results.glob("*/*/*/manifest.json")
    run, said = load_run(manifest.parent), capsys.readouterr()
    assert "records, simulated: they enter no report" in said.out
    assert "speedup" not in said.out
    assert run.records
    for record in run.records:
        assert record.provenance == "simulated"
        assert record.measurement is not None
        assert record.measurement.energy.joules is not None
    # The lines themselves say so: not only this version of the package can tell.
    lines = (run.directory / "records.jsonl").read_text().splitlines()
    assert all('"provenance":"simulated"' in line.replace(": ", ":") for line in lines)
    for options in ([], ["--json"]):
        assert report([str(run.directory), *options]) == 2
        said = capsys.readouterr()
        assert "its record is simulated" in said.err
        assert said.out == ""
    assert not list(run.directory.glob("report.*")) and not list(run.directory.glob("*.png"))
