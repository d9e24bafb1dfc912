"""What spoils measurements, on machines made of files and a board made of answers."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moebench.measure.preflight import Finding, inspect_machine

GOOD = {
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "performance\n",
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "performance\n",
    "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "0\n",
    "sys/fs/cgroup/cpu.max": "max 100000\n",
    "sys/kernel/mm/transparent_hugepage/enabled": "[always] madvise never\n",
    "sys/devices/system/node/node0/x": "",
    "sys/devices/system/node/node1/x": "",
    "proc/sys/kernel/numa_balancing": "0\n",
    "proc/loadavg": "0.20 0.10 0.05 1/100 1234\n",
    "proc/stat": "cpu  1000 0 1000 90000 100 0 0 10 0 0\ncpu0 1 2 3\n",
    "proc/meminfo": "MemTotal: 100 kB\nSwapTotal: 2048 kB\nSwapFree: 2048 kB\n",
}


def board(**answers: Any) -> SimpleNamespace:
    """An NVML with one board on which nothing is wrong, except for `answers`."""
    known: dict[str, Any] = {
        "nvmlDeviceGetPersistenceMode": 1,
        "nvmlDeviceGetMigMode": (0, 0),
        "nvmlDeviceGetEccMode": [1, 1],
        "nvmlDeviceGetCurrentClocksThrottleReasons": 1,
        "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=0),
        "nvmlDeviceGetComputeRunningProcesses": [],
    } | answers

    def answer(value: Any) -> Any:
        def ask(handle: object) -> Any:
            if isinstance(value, Exception):
                raise value
            return value

        return ask

    return SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda index: "handle",
        **{name: answer(value) for name, value in known.items()},
    )


class NoNvml:
    def nvmlInit(self) -> None:  # noqa: N802 - the binding's name
        raise OSError("libnvidia-ml.so.1: not found")


def inspect(
    root: Path, nvml: Any = None, threads: int = 2, cores: int = 2, **files: str
) -> dict[str, Finding]:
    """Findings by name on a machine of good files, except for those given by path."""
    for name, text in (GOOD | files).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = inspect_machine(threads, cores, root, nvml or NoNvml())
    return {finding.name: finding for finding in found}


def test_nothing_is_wrong_with_a_quiet_machine(tmp_path: Path) -> None:
    found = inspect(tmp_path, board())
    assert {f.name: f.seen for f in found.values() if f.status != "good"} == {}
    assert len(found) == 14


@pytest.mark.parametrize(
    ("name", "files", "seen"),
    [
        (
            "frequency governor",
            {"sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "powersave\n"},
            "performance, powersave",
        ),
        (
            "throttling",
            {"sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "7\n"},
            "7 times since boot",
        ),
        ("other load", {"proc/loadavg": "1.50 0 0 1/1 1\n"}, "1.50 runnable"),
        (
            "time taken by the host",
            {"proc/stat": "cpu 900 0 0 90000 0 0 0 100 0 0\n"},
            "10.0% of the busy time",
        ),
        ("processor quota", {"sys/fs/cgroup/cpu.max": "150000 100000\n"}, "1.5 of 2 cores"),
        (
            "huge pages",
            {"sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n"},
            "madvise",
        ),
        (
            "swap",
            {"proc/meminfo": "MemTotal: 1 kB\nSwapTotal: 4096 kB\nSwapFree: 2048 kB\n"},
            "2 MiB in use",
        ),
        ("NUMA balancing", {"proc/sys/kernel/numa_balancing": "1\n"}, "on, 2 memory nodes"),
    ],
)
def test_each_thing_that_spoils_measurements_is_named_with_a_remedy(
    name: str, files: dict[str, str], seen: str, tmp_path: Path
) -> None:
    found = inspect(tmp_path, board(), **files)
    assert [f.name for f in found.values() if f.status == "bad"] == [name]
    assert seen in found[name].seen
    assert found[name].meaning and found[name].remedy


def test_more_threads_than_cores_are_bad_and_fewer_are_a_choice(tmp_path: Path) -> None:
    assert inspect(tmp_path, threads=4)["threads"].status == "bad"
    assert inspect(tmp_path, threads=1)["threads"].status == "good"


@pytest.mark.parametrize(
    ("answers", "name", "seen"),
    [
        ({"nvmlDeviceGetPersistenceMode": 0}, "GPU 0 persistence mode", "off"),
        ({"nvmlDeviceGetMigMode": (1, 1)}, "GPU 0 MIG", "on"),
        ({"nvmlDeviceGetEccMode": [0, 0]}, "GPU 0 ECC", "off"),
        (
            {"nvmlDeviceGetCurrentClocksThrottleReasons": 0x28},
            "GPU 0 throttling",
            "hardware slowdown, heat",
        ),
        (
            {"nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=40)},
            "GPU 0 other load",
            "40 % busy",
        ),
        (
            {"nvmlDeviceGetComputeRunningProcesses": [SimpleNamespace(pid=1)]},
            "GPU 0 other load",
            "1 other processes",
        ),
    ],
)
def test_each_thing_that_is_wrong_with_a_board_is_named(
    answers: dict[str, Any], name: str, seen: str, tmp_path: Path
) -> None:
    found = inspect(tmp_path, board(**answers))
    assert [f.name for f in found.values() if f.status == "bad"] == [name]
    assert seen in found[name].seen


def test_what_a_board_refuses_to_say_is_unknown_and_never_good(tmp_path: Path) -> None:
    refused = {
        name: OSError("not supported")
        for name in vars(board())
        if name.startswith("nvmlDeviceGet") and "Count" not in name and "Handle" not in name
    }
    found = inspect(tmp_path, board(**refused))
    states = {f.status for name, f in found.items() if name.startswith("GPU")}
    assert states == {"unknown"}


def test_a_board_without_nvml_is_bad_and_no_board_is_fine(tmp_path: Path) -> None:
    assert inspect(tmp_path)["GPU"].status == "good"
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidia0").touch()
    assert inspect(tmp_path)["NVML"].status == "bad"


def test_what_a_guest_cannot_see_is_unknown(tmp_path: Path) -> None:
    found = inspect_machine(2, 2, tmp_path, NoNvml())
    by_name = {finding.name: finding.status for finding in found}
    for name in ("frequency governor", "throttling", "other load", "huge pages", "swap"):
        assert by_name[name] == "unknown"
