"""Rounds of a cell of expert backends, with workers that answer at once."""

from pathlib import Path
from typing import Any

import pytest

from moebench.records.experts_run import MATMUL_SIZE, PROBE_WORK, ExpertsCell
from moebench.suite.experts_cell import LEAST_ROUNDS, SLOW_ENTRY, SLOW_ROUNDS, measure_cell
from moebench.suite.experts_plan import load_experts_suite
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
    slow = 2 * SLOW_ENTRY
    result = measured(Answering({"grouped": 1.0, "packed": slow}))
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
