"""Runs against runs: what is divided, what is refused, and when the exit code is 1."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import HERE, timed, without_reference

from moebench.compare.cli import main
from moebench.compare.noise import (
    UnchangedRun,
    UnchangedRuns,
    add_unchanged_run,
    load_unchanged_runs,
)
from moebench.compare.runs import compare_runs, relative_latency
from moebench.records.manifest import Manifest
from moebench.records.measurement import Reference
from moebench.records.run import Run, RunWriter
from moebench.spec.case import Launch


def unchanged(deviation: float, runs: int = 10) -> UnchangedRuns:
    """A/A runs of this standard deviation."""
    values = np.linspace(-1, 1, runs)
    values *= deviation / values.std(ddof=1)
    return UnchangedRuns(
        "f00d", tuple(UnchangedRun("2026", None, 1, {"case": float(v)}) for v in values)
    )


def written(folder: Path, run: Run) -> str:
    """The run on disk."""
    with RunWriter.create(folder, run.manifest) as made:
        made.write_predictions(
            replace(r, provenance="predicted", measurement=None) for r in run.records
        )
        made.append(run.records)
        made.finish("done")
        return str(made.directory)


def test_a_slower_machine_is_not_slower_code() -> None:
    found = compare_runs(timed(1), timed(2, speed=1.4), unchanged(0.01))
    assert all(abs(change.value - 1) < 0.03 for change in found.changes)
    assert all(change.plain == pytest.approx(1.4, rel=0.03) for change in found.changes)
    assert not found.regressions


def test_slower_code_is_a_regression_whatever_the_machine_does() -> None:
    for speed in (0.8, 1.3):
        found = compare_runs(timed(1), timed(2, factor=1.12, speed=speed), unchanged(0.01))
        assert len(found.regressions) == len(found.changes) == 10
        assert all(change.verdict == "slower" for change in found.changes)


def test_faster_code_is_no_regression() -> None:
    found = compare_runs(timed(1), timed(2, factor=0.8), unchanged(0.01))
    assert {change.verdict for change in found.changes} == {"faster"}
    assert not found.regressions


def test_a_slowdown_below_the_threshold_is_no_regression() -> None:
    found = compare_runs(timed(1), timed(2, factor=1.04), unchanged(0.002), threshold=0.1)
    assert {change.verdict for change in found.changes} == {"same"}


def test_the_noise_between_runs_enters_the_interval() -> None:
    runs = timed(1), timed(2, factor=1.08)
    narrow = compare_runs(*runs, unchanged(0.001)).changes[0]
    wide = compare_runs(*runs, unchanged(0.08)).changes[0]
    assert narrow.verdict == "slower" and wide.verdict == "unclear"
    assert narrow.low is not None and wide.low is not None
    assert narrow.low > 1.05 and wide.low < 0.95


@pytest.mark.slow
def test_intervals_hold_the_truth_where_runs_differ_by_more_than_their_rounds_say() -> None:
    """Ten A/A runs and two runs, all shifted by 2 %: 95 % of the intervals hold "unchanged"."""
    rng = np.random.default_rng(3)
    held = []
    for seed in range(60):
        shifts = 0.02 * rng.standard_normal(12)
        known = UnchangedRuns(
            "f00d",
            tuple(UnchangedRun("2026", None, 1, {"case": float(s)}) for s in shifts[:10]),
        )
        a, b = timed(2 * seed, shift=shifts[10]), timed(2 * seed + 1, shift=shifts[11])
        change = compare_runs(a, b, known).changes[0]
        assert change.low is not None and change.high is not None
        held.append(change.low <= 1.0 <= change.high)
    assert 0.87 <= np.mean(held) <= 1.0
    without = compare_runs(timed(0, shift=-0.03), timed(1, shift=0.03), UnchangedRuns("f00d", ()))
    assert any("noise between runs is not known" in label for label in without.labels)


@pytest.mark.parametrize("runs", [0, 9])
def test_fewer_than_ten_runs_say_nothing(runs: int) -> None:
    assert UnchangedRuns("f00d", unchanged(0.01).runs[:runs]).deviation(1) is None
    assert unchanged(0.01).deviation(1) == pytest.approx(0.01)
    assert unchanged(0.01).deviation(2) is None


def with_facts(**facts: Any) -> Callable[[Manifest], Manifest]:
    return lambda m: replace(m, **facts)


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"machine": "AMD EPYC 9655"}, "machine differs: A has .*, B has AMD EPYC 9655"),
        ({"suite_sha256": "1" * 64}, "suite differs"),
        ({"dtype": "float32"}, "dtype differs: A has bfloat16, B has float32"),
        ({"environment": HERE | {"cpu": {"model": "AMD EPYC", "num_cores": 4}}}, "processor"),
        ({"environment": HERE | {"gpu": {"name": "NVIDIA H100"}}}, "GPU differs: A has none"),
        ({"environment": HERE | {"software": {"num_threads": 1}}}, "threads differs"),
    ],
)
def test_different_machines_and_suites_are_refused_with_the_reason(
    facts: dict[str, Any], reason: str
) -> None:
    other = timed(2, change=with_facts(**facts))
    with pytest.raises(ValueError, match=reason):
        compare_runs(timed(1), other, unchanged(0.01))
    forced = compare_runs(timed(1), other, unchanged(0.01), force=True)
    assert any(label.startswith("forced: ") for label in forced.labels)


def test_memory_of_a_guest_and_its_clock_make_no_other_machine() -> None:
    environment = HERE | {"cpu": HERE["cpu"] | {"memory": 2.0, "governor": "x"}}  # type: ignore[operator]
    compare_runs(timed(1), timed(2, change=with_facts(environment=environment)), unchanged(0.01))


def test_a_run_without_the_reference_operation_is_refused_or_labelled() -> None:
    old = without_reference(timed(1))
    with pytest.raises(ValueError, match="reference operation differs: A has none, B has 1"):
        compare_runs(old, timed(2), unchanged(0.01))
    forced = compare_runs(old, timed(2), unchanged(0.01), force=True)
    assert "latencies are not divided by a reference operation" in forced.labels


def test_cases_of_one_run_alone_are_named() -> None:
    run = timed(2)
    found = compare_runs(timed(1), replace(run, records=run.records[1:]), unchanged(0.01))
    assert found.missing == (run.records[0].case.key,)
    assert len(found.changes) == 9


def test_a_graph_that_was_launched_eagerly_is_not_compared_with_one() -> None:
    def launched(run: Run, launch: Launch) -> Run:
        records = tuple(
            replace(
                record,
                case=replace(record.case, launch="graph"),
                measurement=replace(record.measurement, launch=launch),
            )
            for record in run.records
        )
        return replace(run, records=records)

    graphs = launched(timed(1), "graph")
    assert len(compare_runs(graphs, launched(timed(2), "graph"), unchanged(0.01)).changes) == 10
    with pytest.raises(ValueError, match="share no measured case"):
        compare_runs(graphs, launched(timed(2), "eager"), unchanged(0.01))


def test_a_common_drift_of_latency_and_reference_cancels() -> None:
    run = timed(1)
    measurement = run.records[0].measurement
    assert measurement is not None and measurement.reference is not None
    drift = np.linspace(1, 3, 12)

    def slowed(samples: Any) -> Any:
        return tuple(
            replace(s, seconds=s.seconds * float(d)) for s, d in zip(samples, drift, strict=True)
        )

    slower = replace(
        measurement,
        samples=slowed(measurement.samples),
        reference=Reference(1, slowed(measurement.reference.samples)),
    )
    assert relative_latency(slower).value == pytest.approx(relative_latency(measurement).value)
    assert relative_latency(slower, None).value > relative_latency(measurement, None).value + 0.5


@pytest.mark.parametrize(("factor", "code"), [(1.0, 0), (1.2, 1), (0.8, 0)])
def test_the_exit_code_says_whether_there_is_a_regression(
    factor: float,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for run in unchanged(0.01).runs:
        add_unchanged_run("f00d", run)
    assert load_unchanged_runs("f00d") == unchanged(0.01)
    a = written(tmp_path / "a", timed(1))
    b = written(tmp_path / "b", timed(2, factor=factor))
    assert main([a, b]) == code
    assert ("REGRESSION" in capsys.readouterr().out) is bool(code)
    assert main([a, b, "--json"]) == code
    document = json.loads(capsys.readouterr().out)
    assert len(document["changes"]) == 10 and document["labels"] == []
    assert document["deviation_between_runs"] == pytest.approx(0.01)


def test_what_cannot_be_compared_ends_with_two_and_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = written(tmp_path / "a", timed(1))
    b = written(tmp_path / "b", timed(2, change=with_facts(dtype="float32")))
    assert main([a, b]) == 2
    assert "dtype differs" in capsys.readouterr().err
    assert main([a, b, "--force"]) == 0
    assert "forced: dtype differs" in capsys.readouterr().out
    assert main([a, str(tmp_path / "nowhere")]) == 2
    assert main([a, a, "--threshold", "7"]) == 2
