"""What the samples of a run say: medians with intervals, bounds, and the figures asked."""

from dataclasses import replace
from typing import Literal

import pytest

from moebench.records.experts_run import PROBE_WORK, ExpertsCell, ExpertsResult
from moebench.report.backend_goals import goals
from moebench.report.backend_rows import (
    backend_rows,
    baseline_of,
    drawn_phase,
    machine_rates,
    router_shares,
    time_ratio,
)
from moebench.report.figures.backends import backends_figure
from moebench.spec.model import load_model

RATE, READ = 4e11, 3e10


def cell(
    times: dict[str, dict[str, list[float]]],
    loads: dict[str, tuple[int, int]],
    num_tokens: int = 1024,
    phase: str = "forward",
) -> ExpertsResult:
    """A cell of Mixtral whose limits are `RATE` and `READ`."""
    plan = ExpertsCell("Mixtral", "mixtral-8x7b", 1, phase, "bfloat16", num_tokens, tuple(loads))  # type: ignore[arg-type]
    rounds = max(len(s) for mixes in times.values() for s in mixes.values())
    return ExpertsResult(
        plan,
        {mix: [load] for mix, load in loads.items()},
        {
            backend: {m: [(i, i, s) for i, s in enumerate(times_)] for m, times_ in mixes.items()}
            for backend, mixes in times.items()
        },
        {
            name: [work / (RATE if name.startswith("matmul") else READ)] * rounds
            for name, work in PROBE_WORK.items()
        },
        {},
        {f"{backend}, {mix}": 1 for backend, mixes in times.items() for mix in mixes},
    )


def test_a_bound_is_compute_where_there_are_many_rows_and_weights_where_there_are_few() -> None:
    expert = load_model("mixtral-8x7b").expert_parameters
    many, few = (
        backend_rows([cell({"packed": {"fixed": [1.0] * 6}}, {"fixed": load}, tokens)])[0]
        for load, tokens in (((2048, 8), 1024), ((2, 2), 1))
    )
    assert many.bound == pytest.approx(2 * 2048 * expert / RATE)
    assert few.bound == pytest.approx(2 * 2 * expert / READ)
    assert (many.bound, few.bound) == (many.matmul, few.read)


def test_time_that_falls_with_assignments_realises_the_whole_saving() -> None:
    loads = {"k=8": (8192, 8), "geometric": (2048, 8)}
    whole = cell({"packed": {"k=8": [4.0] * 6, "geometric": [1.0] * 6}}, loads)
    padded = cell({"packed": {"k=8": [4.0] * 6, "geometric": [2.6] * 6}}, loads)
    (found,) = goals([whole])
    assert (found.value.value, found.is_reached) == (pytest.approx(1.0), True)
    (found,) = goals([padded])
    assert (found.value.value, found.is_reached) == (pytest.approx(4 / 2.6 / 4), False)


def test_nulls_may_cost_five_percent_at_most() -> None:
    loads = {"fixed": (2048, 8), "nulls": (2048, 8)}
    for time, is_reached in ((1.04, True), (1.06, False)):
        times = {"packed": {"fixed": [1.0] * 6, "nulls": [time] * 6}}
        found = [f for f in goals([cell(times, loads)]) if f.title == "nulls"]
        assert [f.is_reached for f in found] == [is_reached]


def test_drift_of_the_machine_cancels_in_a_ratio() -> None:
    drift = [1.0, 1.5, 0.7, 2.0, 1.1, 0.9]
    times = {"packed": {"fixed": drift}, "vllm": {"fixed": [0.8 * t for t in drift]}}
    found = time_ratio(cell(times, {"fixed": (2048, 8)}), ("vllm", "fixed"), ("packed", "fixed"))
    assert found is not None
    assert (found.low, found.high) == (pytest.approx(0.8), pytest.approx(0.8))


def test_only_rounds_that_both_ran_are_compared() -> None:
    times = {"packed": {"fixed": [1.0] * 6}, "loop": {"fixed": [9.0] * 3}}
    found = time_ratio(cell(times, {"fixed": (2048, 8)}), ("loop", "fixed"), ("packed", "fixed"))
    assert found is not None
    assert (found.value, found.low) == (9.0, None)


def test_a_router_s_share_is_of_router_and_experts() -> None:
    times = {"packed": {"fixed": [0.9] * 6}, "router top-k": {"fixed": [0.1] * 6}}
    ((_, name, share),) = router_shares([cell(times, {"fixed": (2048, 8)})])
    assert (name, share) == ("top-k", pytest.approx(0.1))


@pytest.mark.parametrize(
    ("backends", "phase", "expected"),
    [
        (("grouped", "packed", "avx512"), "forward", "avx512"),
        (("grouped", "packed", "vllm"), "forward", "packed"),
        (("vllm", "grouped"), "forward", "grouped"),
        (("grouped", "avx512"), "train", "avx512"),
        (("vllm", "grouped", "packed"), "train", "grouped"),
    ],
)
def test_others_are_compared_with_the_first_of_the_defaults_that_ran(
    backends: tuple[str, ...], phase: Literal["forward", "train"], expected: str
) -> None:
    one = cell({name: {"fixed": [1.0] * 6} for name in backends}, {"fixed": (2, 2)})
    one = replace(one, plan=replace(one.plan, phase=phase))
    assert baseline_of(one) == expected
    assert {line.backend for line in backend_rows([one]) if line.ratio is None} == {expected}


def test_a_run_of_training_alone_is_told_against_what_trained() -> None:
    times = {name: {"fixed": [seconds] * 6} for name, seconds in (("avx512", 1), ("grouped", 3))}
    trained = cell(times, {"fixed": (2, 2)}, phase="train")
    assert drawn_phase([trained]) == "train"
    assert drawn_phase([trained, cell(times, {"fixed": (2, 2)})]) == "forward"
    figure = backends_figure([trained], "avx512")
    (axes,) = figure.axes
    assert axes.get_xlabel() == "time over that of avx512 (above 1: slower)"
    assert [3.0] in [list(line.get_xdata()) for line in axes.lines]


def test_reading_is_judged_by_the_fastest_probe() -> None:
    one = cell({"packed": {"fixed": [1.0] * 6}}, {"fixed": (2, 2)})
    one.limits["read dot"] = [PROBE_WORK["read dot"] / (2 * READ)] * 6
    assert machine_rates(one)[1] == pytest.approx(2 * READ)
