"""Processes of expert backends: an error is an answer, and a death is told with its name."""

import multiprocessing
import os
from collections.abc import Iterator

import pytest

from moebench.suite import workers
from moebench.suite.workers import SHARED, Workers

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
"""Python 3.12 warns of forks beside threads; these forks compute nothing."""


class Bench:
    """A bench that computes nothing."""

    def __init__(self, device: str, num_threads: int, scratch: float, alone: str) -> None:
        self.alone = alone

    def twice(self, number: int) -> int:
        return 2 * number

    def fail(self) -> None:
        raise LookupError("no such step")

    def die(self) -> None:
        os._exit(3)


@pytest.fixture
def hired(monkeypatch: pytest.MonkeyPatch) -> Iterator[Workers]:
    """Processes of two backends, of which one owns its process."""
    monkeypatch.setattr(workers, "ExpertBench", Bench)
    forks = multiprocessing.get_context("fork")
    monkeypatch.setattr(workers, "get_context", lambda method: forks)
    own = Workers(("grouped", "vllm"), "cpu", 0.0)
    yield own
    own.close()


def test_calls_are_answered_and_an_error_is_raised_here(hired: Workers) -> None:
    assert {*hired._ends} == {"vllm", SHARED}
    assert hired.ask("vllm", "twice", 4) == hired.ask("grouped", "twice", 4) == 8
    with pytest.raises(RuntimeError, match="LookupError: no such step"):
        hired.ask("grouped", "fail")
    assert hired.ask("grouped", "twice", 1) == 2, "it goes on"


def test_a_process_that_died_is_named_and_the_others_go_on(hired: Workers) -> None:
    for _ in range(2):
        with pytest.raises(RuntimeError, match="the process of vllm died"):
            hired.ask("vllm", "die")
    assert hired.ask("grouped", "twice", 3) == 6
