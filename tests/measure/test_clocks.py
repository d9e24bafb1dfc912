"""Clocks of a GPU: whose device is waited for, and how launches are kept out of a time."""

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from moebench.measure import reference
from moebench.measure.clocks import FILLED, CudaClock, HostClock, clock_for, mean_time
from moebench.suite import expert_bench

LAUNCH = 15e-6
"""Idle time of the device before the first of some launches."""


class ImitatedGpu(CudaClock):
    """A clock on whose device every piece of work takes `seconds`, after one launch."""

    def __init__(self, seconds: float) -> None:
        super().__init__(torch.device("cuda", 1))
        self.seconds, self.runs, self.timed = seconds, 0, 0

    def work(self) -> None:
        self.runs += 1

    def time(self, work: Callable[[], object]) -> float:
        before = self.runs
        work()
        self.timed = self.runs - before
        return LAUNCH + self.seconds * self.timed


@pytest.mark.parametrize("microseconds", [25, 60, 1500, 20_000])
def test_a_launch_is_no_part_of_the_mean_time_of_work_on_a_gpu(microseconds: float) -> None:
    gpu = ImitatedGpu(microseconds * 1e-6)
    found = mean_time(gpu.work, gpu)
    assert found == pytest.approx(gpu.seconds, rel=0.004)
    assert gpu.timed * gpu.seconds >= FILLED - LAUNCH
    assert gpu.timed == 1 or gpu.timed * gpu.seconds < 3 * FILLED


def test_work_on_a_processor_is_timed_once() -> None:
    calls: list[int] = []
    assert mean_time(lambda: calls.append(1), HostClock()) > 0
    assert len(calls) == 1


def test_the_reference_operation_fills_5_ms_of_a_gpu_and_its_times_are_of_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = ImitatedGpu(40e-6)
    monkeypatch.setattr(reference, "clock_for", lambda device: gpu)
    monkeypatch.setattr(reference, "READ_BYTES", 4096)
    sums = []
    monkeypatch.setattr(reference, "linear", lambda x, weight: None)
    monkeypatch.setattr(torch.Tensor, "sum", lambda words: gpu.work() or sums.append(words))
    operation = reference.ReferenceOperation(torch.device("cpu"))
    assert operation.version == 2
    assert 100 <= operation.repeats <= 130
    sums.clear()
    assert operation.time(gpu) == pytest.approx(40e-6, rel=0.004)
    assert len(sums) == operation.repeats
    timer = operation._timer
    assert operation.reading() == pytest.approx(timer.seconds()["reading"] / operation.repeats)


class Events:
    """Events of an imitated `torch.cuda`: which device was waited for, and which was current."""

    def __init__(self) -> None:
        self.synchronized: list[Any] = []
        self.current: list[Any] = []
        self.now = torch.device("cuda", 0)

    def synchronize(self, device: Any = None) -> None:
        self.synchronized.append(self.now if device is None else device)

    @contextmanager
    def device(self, device: torch.device) -> Any:
        before, self.now = self.now, device
        yield
        self.now = before

    def Event(self, enable_timing: bool) -> "Events":
        return self

    def record(self) -> None:
        self.current.append(self.now)

    def elapsed_time(self, other: "Events") -> float:
        return 4.0


def test_the_device_that_computes_is_the_one_that_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events, second = Events(), torch.device("cuda", 1)
    for name in ("synchronize", "device", "Event"):
        monkeypatch.setattr(torch.cuda, name, getattr(events, name))
    assert clock_for(second).time(lambda: None) == pytest.approx(4e-3)
    assert events.synchronized[0] == second
    assert events.current == [second, second]


def test_limits_of_a_gpu_are_those_of_large_matmuls_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert expert_bench.matmul_size(torch.device("cuda", 1)) == 8192
    assert expert_bench.matmul_size(torch.device("cpu")) == 2048
    gpu = ImitatedGpu(60e-6)
    monkeypatch.setattr(expert_bench, "clock_for", lambda device: gpu)
    monkeypatch.setattr(expert_bench, "_probes", lambda device: {"read sum": gpu.work})
    bench = expert_bench.ExpertBench("cpu", 1)
    assert bench.time("read sum", "", "forward", 0, 1) == pytest.approx(60e-6, rel=0.004)
    assert gpu.timed >= 50
