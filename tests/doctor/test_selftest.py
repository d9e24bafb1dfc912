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
from moebench.doctor import answers, selftest
from moebench.doctor import cli as doctor
from moebench.doctor.experiments import Rate, UnitRates, exact_rate, rates
from moebench.doctor.selftest import Selftest, worst
from moebench.doctor.text import rate_text, selftest_table
from moebench.doctor.timed_units import Amount, Times, cut, drifting, quick_unit, record_times
from moebench.measure.environment import describe_machine
from moebench.records.results import Ratio
from moebench.records.run import Run, load_run
from moebench.report.conditions import noise_floor
from moebench.spec.schema import decode

CPU = torch.device("cpu")


def recording(rounds: int, noise: float = 0.02, bias: float = 0.0, parts: int = 1) -> Times:
    """Two equal units, or a second one that is slower by `bias` in truth."""
    rng = np.random.default_rng(7)
    times = 1e-3 * np.exp(noise * rng.standard_normal((2, rounds, parts)))
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
    fair = rates(recording(96 * 40), 0.0, fewest=40)
    unfair = rates(recording(96 * 40, bias=0.03), 0.0, fewest=40)
    assert fair.aa_rate.value is not None and unfair.aa_rate.value is not None
    assert fair.aa_rate.value <= 0.15 and fair.aa_rate.n == 40
    assert unfair.aa_rate.value > 0.9 and (unfair.coverage.value or 0.0) < 0.1


@pytest.mark.slow
def test_planted_slowdowns_are_seen_through_little_noise_and_not_through_much() -> None:
    quiet = rates(recording(96 * 20, 0.01), 0.03, fewest=20)
    loud = rates(recording(96 * 20, 0.5), 0.0, fewest=20)
    assert quiet.power_2.value == quiet.power_5.value == 1.0
    assert loud.power_2.value is not None and loud.power_5.value is not None
    assert loud.power_2.value < 0.3 and loud.power_5.value < 0.4
    assert loud.half_width > 10 * quiet.half_width


def test_stretches_are_disjoint() -> None:
    times = np.arange(20.0).reshape(2, 10, 1)
    assert [stretch[0, :, 0].tolist() for stretch in cut(times, 4)] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_drift_is_the_machine_s_and_common_to_both() -> None:
    times = drifting(np.ones((2, 5, 2)), 0.03)
    assert (times[:, 0] == 1.0).all() and (times[:, -1] == 1.03).all()


@pytest.mark.parametrize(
    ("name", "rate", "is_missed"),
    [
        ("aa_rate", Rate(0.07, 0.047, 0.10, 400), False),
        ("aa_rate", Rate(0.08, 0.055, 0.11, 400), True),
        ("power_5", Rate(0.94, 0.91, 0.96, 400), True),
        ("power_5", Rate(None, None, None, 9), False),
    ],
)
def test_a_rate_is_missed_outside_its_band_and_never_without_enough_experiments(
    name: str, rate: Rate, is_missed: bool
) -> None:
    assert selftest.is_missed(name, rate) is is_missed


def test_few_experiments_give_no_rate_and_say_so() -> None:
    """Three of 400: the table has no figure to quote; the noise and the rounds it takes stay."""
    found = rates(recording(96 * 3), 0.0)
    for name in ("aa_rate", "false_verdicts", "coverage", "power_2", "power_5"):
        assert getattr(found, name) == Rate(None, None, None, 3)
    assert rate_text(found.aa_rate) == "not resolved (3 trials)"
    assert found.half_width > 0 and found.rounds_2 is not None and found.rounds_5 is not None
    known = Rate(0.05, 0.03, 0.08, 400)
    unit = replace(found, **dict.fromkeys(("aa_rate", "power_2", "power_5", "coverage"), known))
    assert worst("power_2", (found, unit)) == 0.05
    assert worst("power_2", (found,)) is None


def test_delays_of_single_steps_cost_no_power() -> None:
    """A visit in which two of ten steps take five times as long shows nothing; its parts do."""
    times = recording(96 * 3, 0.03, parts=10)
    times *= np.where(np.random.default_rng(3).random(times.shape) < 0.2, 5.0, 1.0)
    by_part = rates(times, 0.0, fewest=3)
    whole = rates(times.sum(-1, keepdims=True), 0.0, fewest=3)
    assert by_part.half_width < 0.03 < 0.1 < whole.half_width
    assert by_part.power_5.value == 1.0 and whole.power_5.value == 0.0
    assert (by_part.rounds_5 or 0) <= 36 < 10 * 36 < (whole.rounds_5 or 0)


def test_recordings_are_real_times_of_interleaved_visits() -> None:
    ran: list[str] = []
    pair = (lambda: ran.append("first"), lambda: ran.append("second"))
    times = record_times(pair, CPU, 30.0, Amount(3, 200), lambda: None)
    assert times.shape == (2, 200, 3) and (times > 0).all()
    rounds = [tuple(ran[i : i + 6]) for i in range(0, 1200, 6)]
    one, other = ("first",) * 3, ("second",) * 3
    assert {one + other, other + one} == set(rounds)
    assert record_times(pair, CPU, 30.0, Amount(1, 40), lambda: None).shape == (2, 40, 1)
    with pytest.raises(ValueError, match="expected at least 36"):
        record_times(pair, CPU, 30.0, Amount(1, 35), lambda: None)


def test_a_unit_runs_as_many_products_as_it_is_told() -> None:
    unit = quick_unit(CPU)
    assert unit.products >= 20 and unit.seconds > 0
    unit.run(3)


def made_up(missed: tuple[str, ...] = ()) -> Selftest:
    rate = Rate(0.05, 0.03, 0.08, 400)
    unit = UnitRates(rate, rate, rate, rate, rate, 80.0, 0.013, 41, 12)
    ratio = Ratio("speedup", "second", "first", 1.03, 1.02, 1.04, "faster", 900)
    return Selftest(
        0.05, 0.9, 1.0, 0.95, 0.013, unit, unit, unit, unit,
        1e-3, 2e-3, 0.1, 38400, 900, 500.0, missed, real_work=(selftest.RealWork(1.028, ratio),),
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
    monkeypatch.setattr(answers, "selftest", lambda *arguments: made_up(missed))
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
    monkeypatch.setattr(answers, "selftest", lambda *arguments: made_up())
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
