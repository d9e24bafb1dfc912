"""Rounds of a cell of expert backends, with workers that answer at once."""

from pathlib import Path
from typing import Any

import pytest

from moebench.records.experts_run import MATMUL_SIZE, PROBE_WORK, ExpertsCell
from moebench.suite.experts_cell import measure_cell
from moebench.suite.experts_plan import load_experts_suite, planned_cells
from moebench.suite.experts_time import (
    LEAST_ROUNDS,
    SLOW_ENTRIES,
    SLOW_ROUNDS,
    expected_time,
    most_rounds,
    opening_time,
)
from moebench.suite.workers import Workers

FILE = load_experts_suite(str(Path(__file__).with_name("toy.toml"))).file
CELL = ExpertsCell("Mixtral / 64", "mixtral-8x7b", 64, "forward", "float32", 8, ("fixed", "nulls"))


class Answering(Workers):
    """Workers without a process: each backend takes the same time in every step."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.backends = tuple(seconds)
        self.seconds = seconds
        self.broken, self.matmul_size = "", MATMUL_SIZE
        self._processes = []

    def open(self, plan: ExpertsCell, seed: int, routers: tuple[str, ...]) -> dict[str, list[Any]]:
        return {mix: [(16, 8)] * plan.num_steps for mix in plan.mixes}

    def ask(self, what: str, name: str, *arguments: Any) -> Any:
        if what == self.broken:
            raise RuntimeError(f"{what} broke")
        return self.seconds.get(what, 0.001)


def measured(workers: Answering, allowed: float = 60.0, rounds: int = 9) -> Any:
    file = type(FILE)(**{**vars(FILE), "rounds": rounds})
    return measure_cell(file, CELL, workers, allowed, lambda share, what: None)


def test_every_entry_and_limit_runs_once_a_round_and_slow_backends_in_a_few() -> None:
    slow = 2 * SLOW_ENTRIES[0]
    result = measured(Answering({"grouped": 1.0, "packed": slow}), allowed=1000.0)
    assert set(result.samples) == {"grouped", "packed", "router ada-k"}
    for mix in CELL.mixes:
        assert [number for number, *_ in result.samples["grouped"][mix]] == [*range(9)]
        assert [number for number, *_ in result.samples["packed"][mix]] == [*range(SLOW_ROUNDS)]
        assert {seconds for *_, seconds in result.samples["packed"][mix]} == {slow}
    assert {name: len(times) for name, times in result.limits.items()} == dict.fromkeys(
        PROBE_WORK, 9
    )


@pytest.mark.parametrize(("rounds", "expected"), [(9, LEAST_ROUNDS), (2, 2)])
def test_without_time_a_cell_has_the_least_number_of_rounds(rounds: int, expected: int) -> None:
    result = measured(Answering({"grouped": 1.0}), allowed=0.0, rounds=rounds)
    assert len(result.samples["grouped"]["fixed"]) == expected


def test_a_backend_that_fails_is_an_error_and_a_limit_that_fails_ends_the_run() -> None:
    workers = Answering({"grouped": 1.0, "packed": 1.0})
    workers.broken = "packed"
    result = measured(workers)
    assert result.errors == {"packed, fixed": "packed broke", "packed, nulls": "packed broke"}
    assert set(result.samples) == {"grouped", "router ada-k"}
    workers.broken = "read sum"
    with pytest.raises(RuntimeError, match="read sum broke"):
        measured(workers)


def test_a_cell_records_the_load_of_the_host_in_its_rounds(quiet_host: None) -> None:
    load = measured(Answering({"packed": 0.05}), rounds=9).load
    assert load is not None and not load.is_busy
    assert [part.round for part in load.rounds] == [0, 3, 6]


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        (1000.0, (9, 9, 9, SLOW_ROUNDS)),
        (150.0, (9, 9, 9, 1)),  # three rounds of the last would take over a quarter of it
        (60.0, (9, 9, SLOW_ROUNDS, 1)),  # 6 (1 + 3 + 5) + 20 s do not fit, but 6 (1 + 3) + 3 5 + 20
        (45.0, (9, SLOW_ROUNDS, 1, 1)),
        (0.0, (9, 1, 1, 1)),
    ],
)
def test_slow_backends_have_fewer_rounds_where_time_is_short(
    allowed: float, expected: tuple[int, ...]
) -> None:
    warm = {(name, "fixed"): s for name, s in zip("abcd", (1.0, 3.0, 5.0, 20.0), strict=True)}
    warm["router top-k", "fixed"] = 0.001
    found = most_rounds(warm, "abcd", 9, allowed)
    assert tuple(found[name, "fixed"] for name in "abcd") == expected
    assert found["router top-k", "fixed"] == 9
    assert set(most_rounds(warm, "abcd", 2, allowed).values()) <= {1, 2}


def test_the_suite_of_experts_is_expected_to_fit_into_its_time() -> None:
    suite = load_experts_suite("experts")
    plans = planned_cells(suite, is_full=False)
    shapes = {plan.shape: plan for plan in plans}
    cells = sum(expected_time(plan, 6) for plan in plans)
    assert 0.5 * suite.file.time_budget < cells + sum(map(opening_time, shapes.values()))
    assert cells + sum(map(opening_time, shapes.values())) < 1.5 * suite.file.time_budget
    large = max(plans, key=lambda plan: expected_time(plan, 6))
    assert (large.shape, large.num_tokens) == ("Mixtral / 4", 4096)
