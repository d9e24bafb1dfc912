"""The load of the host, read from files that stand in for `/proc`, on clocks that we move."""

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from moebench.measure.environment import allowed_processors
from moebench.measure.host import HostMeter, gpu_use, meter, processes_time
from moebench.records.host import HostLoad, RoundLoad

CPUS = sorted(allowed_processors())


class Machine:
    """A machine of files: seconds that pass, and who uses its processors in them."""

    def __init__(self, root: Path) -> None:
        self.root, self.wall, self.own = root, 0.0, 0.0
        self.user, self.nice, self.stolen, self.waiting = 0.0, 0.0, 0.0, 0.0
        (root / "proc/pressure").mkdir(parents=True)
        self.write()

    def write(self) -> None:
        # All of it on the first processor that this process may use; the one after the last is
        # somebody else's and must not count.
        rows = [(f"cpu{CPUS[0]}", self.user, self.nice, self.stolen)]
        rows += [(f"cpu{number}", 0.0, 0.0, 0.0) for number in CPUS[1:]]
        rows += [(f"cpu{CPUS[-1] + 1}", 1e4 * self.wall, 0.0, 1e4 * self.wall)]
        lines = ["cpu  9 9 9 9 9 9 9 9 0 0"]
        for name, user, nice, stolen in rows:
            ticks = (user, nice, 0.0, 7.0, 7.0, 0.0, 0.0, stolen, 0.0, 0.0)
            lines.append(f"{name} {' '.join(str(round(100 * value)) for value in ticks)}")
        (self.root / "proc/stat").write_text("\n".join([*lines, "intr 1 2 3"]))
        (self.root / "proc/pressure/cpu").write_text(
            f"some avg10=0.62 avg60=0.63 avg300=0.41 total={round(1e6 * self.waiting)}\n"
            "full avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
        )

    def passes(self, seconds: float, own: float, others: float, **counters: float) -> None:
        self.wall += seconds
        self.own += own
        self.user += own + others
        for name, value in counters.items():
            setattr(self, name, getattr(self, name) + value)
        self.write()

    def meter(self, threads: int = 2) -> HostMeter:
        return HostMeter(threads, self.root, lambda: self.own, lambda: self.wall)


def load_of(machine: Machine, meter: HostMeter, rounds: int = 4, **passing: float) -> HostLoad:
    """The load of some equal rounds on a host of two processors."""
    loads = []
    meter.processors = 2.0
    for number in range(rounds):
        meter.start()
        machine.passes(**passing)  # type: ignore[arg-type]
        loads.append(meter.load(number))
    return meter.host_load(tuple(loads))


def test_a_process_alone_gets_its_processors(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    load = load_of(machine, machine.meter(), seconds=0.5, own=0.95, others=0.0)
    assert load.share == pytest.approx(0.95)
    assert (load.others, load.stolen, load.waiting) == (0.0, 0.0, 0.0)
    assert not load.is_busy and load.missing is None


def test_two_spinning_processes_beside_two_threads_make_a_busy_machine(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    load = load_of(machine, machine.meter(), seconds=0.5, own=0.5, others=0.5, waiting=0.5)
    assert load.share == pytest.approx(0.5)
    assert load.others == pytest.approx(1.0)
    assert load.wanted == pytest.approx(3.0)
    assert load.waiting == pytest.approx(1.0)
    assert load.is_busy


def test_a_thread_that_leaves_a_processor_free_is_not_disturbed_there(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    load = load_of(machine, machine.meter(threads=1), seconds=0.5, own=0.5, others=0.5)
    assert load.wanted == pytest.approx(2.0)
    assert not load.is_busy


def test_time_that_the_host_takes_makes_a_busy_machine(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    load = load_of(machine, machine.meter(), seconds=0.5, own=0.9, others=0.0, stolen=0.1)
    assert load.stolen == pytest.approx(0.1)
    assert load.is_busy


def test_processes_of_lowered_priority_count(tmp_path: Path) -> None:
    """They got more than half of both processors beside a process of normal priority."""
    machine = Machine(tmp_path)
    load = load_of(machine, machine.meter(), seconds=0.5, own=0.5, others=0.0, nice=0.5)
    assert load.others == pytest.approx(1.0) and load.is_busy


def test_a_gpu_that_others_use_makes_a_busy_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = torch.device("cuda", 0)
    monkeypatch.setattr("moebench.measure.host.gpu_use", lambda device: 40)
    host = meter(device)
    assert host.threads == 1
    busy = host.look(seconds=0.0)
    assert busy.gpu_percent == 40 and busy.is_busy
    quiet = replace(busy, rounds=(RoundLoad(0, 1.0, 0.0, 0.0, 0.0, 0.0),))
    assert quiet.finding == "others use 40% of the GPU"
    assert not replace(quiet, gpu_percent=3).is_busy


def test_the_use_of_a_gpu_is_asked_of_its_own_board(monkeypatch: pytest.MonkeyPatch) -> None:
    board = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: f"handle of {uuid}",
        nvmlDeviceGetUtilizationRates=lambda handle: {
            "handle of GPU-2": SimpleNamespace(gpu=40),
        }[handle],
        nvmlDeviceGetComputeRunningProcesses=lambda handle: [],
    )
    properties = SimpleNamespace(uuid="2")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert gpu_use(torch.device("cuda", 1), board) == 40
    properties.uuid = "3"
    assert gpu_use(torch.device("cuda", 1), SimpleNamespace(nvmlInit=lambda: None)) is None


def test_the_time_of_other_processes_is_counted_with_the_own(tmp_path: Path) -> None:
    (tmp_path / "proc/7").mkdir(parents=True)
    fields = "S 1 7 7 0 -1 4194304 9 9 0 0 150 50 9 9 20 0 1 0 100 9 9"
    (tmp_path / "proc/7/stat").write_text(f"7 (a name) with) blanks) {fields}\n")
    own = time.process_time()
    assert 2.0 <= processes_time([7, 8], tmp_path) - own < 2.5


def test_a_quota_is_a_number_of_processors(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    assert machine.meter().processors == len(CPUS)
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("50000 100000\n")
    assert machine.meter().processors == 0.5


def test_what_the_system_does_not_count_is_none_with_the_reason(tmp_path: Path) -> None:
    load = HostMeter(2, tmp_path).load(3)
    assert (load.round, load.busy, load.stolen, load.waiting) == (3, None, None, None)
    whole = HostMeter(2, tmp_path).host_load((load,))
    assert (whole.others, whole.stolen, whole.waiting) == (None, None, None)
    assert whole.missing == (
        f"{tmp_path}/proc/stat and {tmp_path}/proc/pressure/cpu cannot be read"
    )


def test_an_old_kernel_without_pressure_still_tells_of_others(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    (tmp_path / "proc/pressure/cpu").unlink()
    meter = machine.meter()
    machine.wall, machine.user, machine.own = 1.0, 1.5, 0.5
    machine.write()
    (tmp_path / "proc/pressure/cpu").unlink()
    load = meter.host_load((meter.load(),))
    assert load.others == pytest.approx(1.0) and load.waiting is None
    assert load.missing == f"{tmp_path}/proc/pressure/cpu cannot be read"


def test_ticks_that_lag_behind_the_own_clock_are_no_negative_load() -> None:
    rounds = tuple(RoundLoad(i, 0.02, 0.04, busy, 0.0, 0.0) for i, busy in enumerate((0.03, 0.04)))
    assert HostLoad(2, 2, rounds).others == 0.0
