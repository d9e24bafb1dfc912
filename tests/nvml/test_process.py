"""The reader as a process of its own, in real time, on the simulated library."""

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nvml.simulator import UUID

from moebench.measure.energy import meter as instrument
from moebench.measure.energy import process as energy_process
from moebench.measure.energy.meter import EnergyPlan, measure_energy
from moebench.records.energy import Energy

CUDA = torch.device("cuda", 0)
SHORT = EnergyPlan(windows=3, length=0.2, idle=0.2, settle=0.05, budget=4.0, patience=0.5)
LOOSE = 0.2
"""Real time on a busy machine: accuracy is tested in virtual time."""


@pytest.fixture
def board(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA device that computes on the host and that the simulator knows."""
    event = SimpleNamespace(record=lambda stream: None, synchronize=lambda: None)
    properties = SimpleNamespace(uuid=UUID.format(0).removeprefix("GPU-"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library.parent))


def scenario(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
    settings = {"tick": 0.02, "trace": "0:300", **settings}
    parts = [f"{key.replace('__', '@')}={value}" for key, value in settings.items()]
    text = ";".join(["real=1", f"epoch={time.monotonic()}", *parts])
    monkeypatch.setenv("NVMLSIM", text)


def work(first_step: int, num_steps: int) -> None:
    time.sleep(0.002 * num_steps)


def measured(**arguments: Any) -> Energy:
    return measure_energy(work, CUDA, SHORT, **arguments)


@pytest.mark.usefixtures("board")
def test_joules_a_step_are_power_times_time_and_the_record_says_simulated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scenario(monkeypatch)
    energy = measured()
    assert energy.missing is None
    assert energy.joules * energy.num_steps / energy.window == pytest.approx(300, rel=0.02)
    assert energy.idle_power == pytest.approx(300, rel=0.05)
    assert energy.tick == pytest.approx(0.02, rel=LOOSE)
    assert energy.provenance == "simulated"
    assert energy.conditions["driver"].endswith("-sim")


@pytest.mark.usefixtures("board")
@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"mig": 1}, "mig"),
        ({"init_code": 9}, "driver-not-loaded"),
        ({"lost_at": 0.6}, "gpu-lost"),
        ({"trace": "0:0"}, "not-supported"),
    ],
)
def test_a_fault_in_the_process_reaches_the_parent(
    settings: dict[str, Any], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "not-supported":
        settings = {"fail": "nvmlDeviceGetTotalEnergyConsumption:3", **settings}
    scenario(monkeypatch, **settings)
    energy = measured()
    assert energy.joules is None
    assert energy.fault == kind
    assert energy.missing
    # A board that answered is known as simulated, also where it refuses joules.
    assert energy.provenance == ("measured" if kind == "driver-not-loaded" else "simulated")


@pytest.mark.usefixtures("board")
def test_several_boards_are_added_and_a_lost_one_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    boards = [UUID.format(0), UUID.format(1)]
    second = {"num_boards": 2, "trace__1": "0:150", "tick__1": 0.02}
    scenario(monkeypatch, **second)
    energy = measured(boards=boards)
    assert energy.missing is None
    assert energy.joules == pytest.approx(sum(energy.boards.values()))
    ratio = energy.boards[boards[0]] / energy.boards[boards[1]]
    assert ratio == pytest.approx(2, rel=LOOSE)
    scenario(monkeypatch, **second, lost_at__1=0.6)
    energy = measured(boards=boards)
    assert energy.joules is None
    assert energy.fault == "gpu-lost"
    assert boards[1] in energy.missing


@pytest.mark.slow
@pytest.mark.usefixtures("board")
def test_a_reader_that_is_killed_or_hangs_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    scenario(monkeypatch)
    monkeypatch.setattr(energy_process, "STALL", 0.5)
    started: list[energy_process.ReaderProcess] = []

    class Watched(energy_process.ReaderProcess):
        def __init__(self, arguments: list[str]):
            super().__init__(arguments)
            started.append(self)

    monkeypatch.setattr(instrument, "ReaderProcess", Watched)
    for number, kind in ((signal.SIGKILL, "reader-died"), (signal.SIGSTOP, "reader-stalled")):
        started.clear()

        def visit(first_step: int, num_steps: int, number: int = number) -> None:
            if first_step > 20:
                os.kill(started[0]._process.pid, number)
            work(first_step, num_steps)

        energy = measure_energy(visit, CUDA, SHORT)
        assert energy.joules is None
        assert energy.fault == kind


@pytest.mark.usefixtures("board")
def test_the_reader_ends_with_the_measurement_even_when_the_work_raises(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scenario(monkeypatch)
    started: list[Any] = []
    popen = energy_process.subprocess.Popen

    def remember(*arguments: Any, **keywords: Any) -> Any:
        started.append(popen(*arguments, **keywords))
        return started[-1]

    monkeypatch.setattr(energy_process.subprocess, "Popen", remember)

    def visit(first_step: int, num_steps: int) -> None:
        raise RuntimeError("from the work")

    with pytest.raises(RuntimeError, match="from the work"):
        measure_energy(visit, CUDA, SHORT)
    assert started[0].poll() is not None


def test_the_reader_imports_neither_torch_nor_numpy() -> None:
    program = (
        "import sys, moebench.measure.energy.reader; print({'torch','numpy'} & {*sys.modules})"
    )
    done = energy_process.subprocess.run(
        [energy_process.sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "set()", done.stderr
