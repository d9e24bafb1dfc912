"""A report opens with what was established, what was not, and what to do next."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from runs import BASELINE, FEW, case, cell_key, manifest, measured_cell

from moebench.records.record import Failure, Record
from moebench.records.results import Caveat, Ratio, Verdict
from moebench.records.run import Run
from moebench.report.figures.speedup import speedup_by_batch, speedup_elsewhere
from moebench.report.figures.style import FAINT
from moebench.report.output import terminal_report
from moebench.report.sections import report_blocks
from moebench.report.summary import summary

PLAN = manifest(FEW)
Change = Callable[[Record], Record]


def judged(record: Record, verdict: Verdict, low: float, high: float, n: int = 12) -> Record:
    """The record with this speedup, and without the ratio of its overhead."""
    value = (low * high) ** 0.5
    title = record.case.router.title
    speedup = Ratio("speedup", title, BASELINE, value, low, high, verdict, n)
    kept = [ratio for ratio in record.ratios if ratio.kind not in ("speedup", "overhead")]
    return replace(record, ratios=(speedup, *kept))


def clear(record: Record) -> Record:
    """ada-k is faster, rmoe slower, the others as fast as the baseline."""
    verdicts: dict[str, tuple[Verdict, float, float]] = {
        "ada-k": ("faster", 1.3, 1.4),
        "rmoe": ("slower", 0.8, 0.85),
    }
    title = record.case.router.title
    return (
        record
        if title == BASELINE
        else judged(record, *verdicts.get(title, ("same", 0.995, 1.005)))
    )


def single(record: Record) -> Record:
    """One round, which was a lucky one."""
    if record.case.router.title == BASELINE:
        return record
    value = Ratio("speedup", record.case.router.title, BASELINE, 3.0, None, None, "unclear", 1)
    return replace(record, ratios=(value,))


def run_with(change: Change, failures: tuple[Failure, ...] = (), cells: int = 4) -> Run:
    places = [(level, workload) for level in ("moe", "decoder") for workload in FEW]
    records = [
        change(record)
        for level, workload in places[:cells]
        for record in measured_cell(PLAN, level, workload)  # type: ignore[arg-type]
    ]
    return Run(Path("run"), replace(PLAN, status="done"), (), tuple(records), failures, ())


def test_verdicts_are_established_router_by_router() -> None:
    established, not_established, following = summary(run_with(clear))
    assert established == (
        "Established, against top-k: top-k k=1 takes the same time in 4 of 4 workloads; ada-k is "
        "faster in 4 of 4 workloads, up to 1.35× (decode b1, MoE layer); adamoe takes the same "
        "time in 4 of 4 workloads; rmoe is slower in 4 of 4 workloads, down to 0.82× (decode b1, "
        "MoE layer)."
    )
    assert "unclear" not in not_established and "quality was not measured" in not_established
    assert following.startswith("Next: run the same suite on the GPU")


def test_one_round_establishes_nothing() -> None:
    established, not_established, following = summary(run_with(single))
    assert established == "Established: nothing yet, no speedup of this run has a verdict."
    assert "16 of 16 speedups are unclear (16 rest on fewer than 8 rounds)" in not_established
    assert following == "Next: measure again with more time, --time-budget '16 min'."


def test_cells_left_out_are_said_with_the_command_that_measures_them() -> None:
    keys = [case(title, "decoder", FEW[1]).key for title in ("top-k", "ada-k", "rmoe")]
    failures = tuple(
        Failure(PLAN.run, cell_key("decoder", FEW[1]), key, "left-out", "it takes 40 s", "now")
        for key in keys
    )
    _, not_established, following = summary(run_with(clear, failures, cells=3))
    assert "3 cases were left out for lack of time" in not_established
    assert "gave no number" not in not_established
    assert following.startswith("Next: measure the rest with python -m moebench.suite --resume run")


def test_a_busy_machine_is_the_first_thing_to_mend() -> None:
    def busy(record: Record) -> Record:
        assert record.measurement is not None
        caveat = Caveat("busy-machine", "3 of 2 processors wanted", "latencies wait", "stop it")
        return single(replace(record, measurement=replace(record.measurement, caveats=(caveat,))))

    assert summary(run_with(busy))[2].startswith("Next: stop what else runs on this machine")


def test_a_report_opens_with_the_three_sentences() -> None:
    run = run_with(clear)
    blocks = [getattr(block, "text", "") for block in report_blocks(run, (), ())]
    assert tuple(blocks[2:5]) == summary(run)
    head = " ".join(terminal_report(run).split("MoE layer ·")[0].split())
    assert all(sentence in head for sentence in summary(run))


@pytest.mark.parametrize(("change", "is_faint"), [(clear, False), (single, True)])
def test_a_point_without_a_verdict_is_faint_and_one_round_is_called_one(
    change: Change, is_faint: bool
) -> None:
    figure = speedup_by_batch(run_with(change))
    assert not isinstance(figure, str)
    for axes in figure.axes:
        measured = [line for line in axes.lines if line.get_marker() == "o"]
        assert measured
        assert {line.get_alpha() for line in measured} == {FAINT if is_faint else None}
        labels = {text.get_text() for text in axes.texts}
        assert labels == ({"1 round"} if is_faint else set())
        assert bool(axes.containers) is not is_faint  # intervals, where there are any


def test_a_verdict_that_the_correction_takes_back_is_drawn_faint() -> None:
    """A p-value just below 0.05 beside many that are no difference."""

    def change(record: Record) -> Record:
        if record.case.router.title == BASELINE:
            return record
        if record.case.router.title == "ada-k" and record.case.workload.batch == 1:
            return judged(record, "faster", 1.0001, 1.4)
        return judged(record, "unclear", 0.9, 1.1)

    figure = speedup_by_batch(run_with(change))
    assert not isinstance(figure, str)
    assert {
        line.get_alpha() for axes in figure.axes for line in axes.lines if line.get_marker() == "o"
    } == {FAINT}
    assert "faster" not in summary(run_with(change))[0]


def test_elsewhere_the_same_holds() -> None:
    prefill = ("prefill", 1, 128, 0)
    records = tuple(single(r) for r in measured_cell(manifest((prefill,)), "moe", prefill))
    figure = speedup_elsewhere(Run(Path("run"), manifest((prefill,)), (), records, (), ()))
    assert not isinstance(figure, str)
    (axes,) = figure.axes
    assert {text.get_text() for text in axes.texts} == {"1 round"}
