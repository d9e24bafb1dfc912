"""The selftest's arithmetic on recordings whose truth is known, and what doctor keeps of it."""

import json
import platform
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from doctor.instrument_records import read_record, table_rows
from runs import write_run

from moebench.compare.noise import NoiseFloor, load_noise_floor, save_noise_floor
from moebench.doctor import cli as doctor
from moebench.doctor import selftest
from moebench.doctor.selftest import Rate, Selftest, exact_rate, rates
from moebench.doctor.text import selftest_table
from moebench.doctor.timed_units import Times, cut, drifting, quick_unit, record_times, shuffled
from moebench.measure.environment import describe_machine
from moebench.records.run import Run, load_run
from moebench.report.conditions import noise_floor
from moebench.spec.schema import decode

CPU = torch.device("cpu")


def recording(rounds: int, noise: float = 0.02, bias: float = 0.0) -> Times:
    """Two equal units, or a second one that is slower by `bias` in truth."""
    rng = np.random.default_rng(7)
    times = 1e-3 * np.exp(noise * rng.standard_normal((2, rounds)))
    times[1] *= 1 + bias
    return np.asarray(times)


@pytest.mark.parametrize(
    ("count", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.3085),  # Clopper and Pearson 1934, as tabulated
        (10, 10, 0.6915, 1.0),
        (5, 10, 0.1871, 0.8129),
        (20, 400, 0.0308, 0.0761),
    ],
)
def test_rates_carry_the_exact_binomial_interval(
    count: int, n: int, low: float, high: float
) -> None:
    rate = exact_rate(count, n)
    assert rate.value == count / n
    assert (rate.low, rate.high) == pytest.approx((low, high), abs=2e-4)


@pytest.mark.slow
def test_a_harness_that_favours_one_side_is_found_out() -> None:
    """A second unit that is slower in truth is no A/A: nearly every experiment must object."""
    fair = rates(cut(recording(96 * 40), 96), 0.0)
    unfair = rates(cut(recording(96 * 40, bias=0.03), 96), 0.0)
    assert fair.aa_rate.value <= 0.15 and fair.aa_rate.n == 40
    assert unfair.aa_rate.value > 0.9 and unfair.coverage.value < 0.1


@pytest.mark.slow
def test_planted_slowdowns_are_seen_through_little_noise_and_not_through_much() -> None:
    quiet = rates(cut(recording(96 * 20, 0.01), 96), 0.03)
    loud = rates(cut(recording(96 * 20, 0.5), 96), 0.0)
    assert quiet.power_2.value == quiet.power_5.value == 1.0
    assert loud.power_2.value < 0.3 and loud.power_5.value < 0.4
    assert loud.half_width > 10 * quiet.half_width


def test_stretches_are_disjoint_and_shuffling_keeps_every_pair() -> None:
    times = np.arange(20.0).reshape(2, 10)
    assert [stretch[0, 0] for stretch in cut(times, 4)] == [0.0, 4.0]
    for stretch in shuffled(times, 4, 20):
        assert np.array_equal(np.abs(stretch[0] - stretch[1]), np.full(4, 10.0))
        assert np.array_equal(np.diff(np.sort(stretch, axis=0)), np.ones((2, 3)))


@pytest.mark.slow
def test_overlapping_experiments_count_only_their_disjoint_stretches() -> None:
    found = rates(shuffled(recording(960), 96, 30), 0.0, independent=10)
    assert found.aa_rate.n == found.power_2.n == 10
    assert found.power_5.n == 26  # 36 rounds each


def test_drift_is_the_machine_s_and_common_to_both() -> None:
    times = drifting(np.ones((2, 5)), 0.03)
    assert times[:, 0].tolist() == [1.0, 1.0] and times[:, -1].tolist() == [1.03, 1.03]


@pytest.mark.parametrize(
    ("name", "rate", "expected"),
    [
        ("aa_rate", Rate(0.07, 0.047, 0.10, 400), "reached"),
        ("aa_rate", Rate(0.08, 0.055, 0.11, 400), "missed"),  # enough to be held to the value
        ("aa_rate", Rate(0.09, 0.001, 0.46, 9), "undecided"),
        ("aa_rate", Rate(0.05, 0.001, 0.46, 9), "reached"),
        ("aa_rate", Rate(0.50, 0.21, 0.79, 9), "missed"),
        ("power_5", Rate(0.60, 0.36, 0.81, 20), "missed"),
        ("power_5", Rate(0.90, 0.68, 0.99, 20), "undecided"),
    ],
)
def test_a_rate_from_few_experiments_is_missed_only_if_its_interval_is_outside(
    name: str, rate: Rate, expected: str
) -> None:
    assert selftest.verdict(name, rate) == expected


def test_recordings_are_real_times_of_interleaved_visits() -> None:
    ran: list[str] = []
    pair = (lambda: ran.append("first"), lambda: ran.append("second"))
    times = record_times(pair, CPU, 30.0, 200, lambda: None)
    assert times.shape == (2, 200) and (times > 0).all()
    rounds = [tuple(ran[i : i + 2]) for i in range(0, 400, 2)]
    assert {("first", "second"), ("second", "first")} == set(rounds)
    with pytest.raises(ValueError, match="expected at least 96"):
        record_times(pair, CPU, 30.0, 95, lambda: None)


def test_a_unit_runs_as_many_products_as_it_is_told() -> None:
    unit = quick_unit(CPU)
    assert unit.products >= 20 and unit.seconds > 0
    unit.run(3)


def made_up(missed: tuple[str, ...] = ()) -> Selftest:
    rate = Rate(0.05, 0.03, 0.08, 400)
    unit = selftest.UnitRates(rate, rate, rate, rate, rate, 80.0, 0.013)
    return Selftest(
        0.05, 0.9, 1.0, 0.95, 0.013, unit, unit, unit, unit, rate, rate,
        1e-3, 2e-3, 0.1, 38400, 900, 500.0, missed,
    )  # fmt: skip


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize(("missed", "code"), [((), 0), (("power_2 on the 1 ms unit: 50 %",), 1)])
def test_doctor_keeps_the_noise_floor_and_ends_with_one_if_a_rate_was_missed(
    missed: tuple[str, ...],
    code: int,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(doctor, "selftest", lambda *arguments: made_up(missed))
    assert doctor.main(["--selftest", "--device", "cpu", "--json"]) == code
    document = json.loads(capsys.readouterr().out)
    for key in ("aa_rate", "power_2", "power_5", "coverage", "noise_floor"):
        assert 0 < document[key] <= 1
    kept = load_noise_floor(describe_machine(CPU).fingerprint)
    assert kept is not None and kept.half_width == 0.013
    assert doctor.main(["--selftest", "--device", "cpu"]) == code
    assert ("MISSED" in capsys.readouterr().out) is bool(missed)


def test_a_record_of_the_selftest_says_where_it_is_from_and_gives_its_table_again(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "selftest", lambda *arguments: made_up())
    out = cache / "results" / "selftest"
    assert doctor.main(["--selftest", "--device", "cpu", "--json", "--out", str(out)]) == 0
    document = json.loads(capsys.readouterr().out)
    (path,) = out.glob("*/*.json")
    where, results = read_record(path)
    assert path.parent.name == where.machine and path.stem == where.run
    assert document["aa_rate"] == results["aa_rate"] == 0.05 and len(where.load_average) == 3
    text = path.read_text()
    assert platform.node() not in text.split('"') and str(Path.home()) not in text
    shown = table_rows(path.with_suffix(".md").read_text())
    again = selftest_table(decode(Selftest, results, path.name), where)
    assert shown == table_rows(again)
    assert shown[1][:2] == ["A/A false positives", "5.0 % [3.0, 8.0]"]
    path.write_text(text.replace('"aa_rate": 0.05', '"aa_rate": 0.04'))
    with pytest.raises(ValueError, match="its checksum does not fit"):
        read_record(path)
    assert doctor.main(["--out", str(out), "--device", "cpu"]) == 2


def test_doctor_prints_findings_and_refuses_bad_options(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor.main(["--device", "cpu", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["noise_floor"] is None and document["aa_runs"] == 0
    assert {"huge pages", "threads", "swap"} <= {f["name"] for f in document["findings"]}
    assert doctor.main(["--device", "cpu"]) == 0
    assert "noise floor: not measured" in capsys.readouterr().out
    for arguments in (["--aa-runs", "0"], ["--selftest", "--time-budget", "3 s"]):
        assert doctor.main([*arguments, "--device", "cpu"]) == 2
    assert "expected at least" in capsys.readouterr().err


def test_a_noise_floor_of_another_machine_or_a_damaged_one_is_none(cache: Path) -> None:
    path = save_noise_floor(NoiseFloor("f00d", "2026", None, 0.01, 36))
    assert load_noise_floor("f00d") is not None and load_noise_floor("beef") is None
    path.write_text("{")
    assert load_noise_floor("f00d") is None


def test_reports_carry_the_noise_floor_of_their_machine(tmp_path: Path) -> None:
    run: Run = load_run(write_run(tmp_path))
    assert "doctor --selftest" in noise_floor(run)
    known = replace(run, manifest=replace(run.manifest, noise_floor=0.013))
    assert noise_floor(known).startswith("±1.3 %")


@pytest.mark.slow
@pytest.mark.timeout(1200)  # a machine that does other things calibrates again and again
def test_unchanged_runs_are_made_in_processes_of_their_own_and_kept(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor.main(["--aa-runs", "2", "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "schema": 1,
        "runs": 2,
        "deviation_between_runs": None,
    }
