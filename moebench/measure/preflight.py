"""What on a machine spoils measurements, and how to mend it.

Everything is read from files under `/proc` and `/sys` and from NVML; nothing is changed. What
cannot be read is "unknown" with the reason: a guest often cannot see what its host does.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from moebench.measure.environment import read_text
from moebench.measure.nvml import answer, clock_reasons, open_nvml, other_load

BUSY_SHARE = 0.25
"""Load beyond this share of the cores disturbs: with two threads every fourth visit waits."""
STOLEN_SHARE = 0.01
BUSY_GPU_PERCENT = 5
SLOWDOWNS = {
    "power-cap": "power cap",
    "hw-slowdown": "hardware slowdown",
    "sw-thermal": "heat",
    "hw-thermal": "heat (hardware)",
    "power-brake": "power brake",
}
"""Reasons for lower clocks that spoil measurements, in words."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    status: Literal["good", "bad", "unknown"]
    seen: str
    meaning: str = ""
    """Effect on measurements; empty where nothing is wrong."""
    remedy: str = ""


def inspect_machine(
    num_threads: int, num_cores: int, root: Path = Path("/"), nvml: Any = None
) -> tuple[Finding, ...]:
    """Look at everything that is known to spoil measurements.

    Args:
        num_threads: threads that the framework computes with.
        num_cores: logical processors that this process may use.
        root: above the folders proc, sys and dev.
        nvml: the NVML binding; `pynvml` if left out.
    """
    proc, system = root / "proc", root / "sys"
    return (
        _governor(system),
        _throttling(system),
        _load(proc, num_cores),
        _stolen(proc),
        _threads(num_threads, num_cores),
        _quota(system, num_cores),
        _huge_pages(system),
        _swap(proc),
        _numa_balancing(proc, system),
        *_gpus(nvml, root / "dev"),
    )


def _judged(name: str, is_good: bool, seen: str, meaning: str, remedy: str) -> Finding:
    """A finding that is good or bad; `meaning` and `remedy` belong to a bad one."""
    return Finding(name, "good", seen) if is_good else Finding(name, "bad", seen, meaning, remedy)


def _unknown(name: str, path: Path) -> Finding:
    return Finding(
        name,
        "unknown",
        f"{path} cannot be read",
        "a guest or container may not see it: its host decides",
        "ask who runs the host, and compare runs by their reference operation",
    )


def _governor(system: Path) -> Finding:
    name, pattern = "frequency governor", "devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor"
    governors = sorted({text for path in system.glob(pattern) if (text := read_text(path))})
    if not governors:
        return _unknown(name, system / pattern)
    is_good = governors == ["performance"]
    return _judged(
        name,
        is_good,
        "performance on every core" if is_good else ", ".join(governors),
        "clocks follow the load: the first milliseconds of a visit run slower",
        "cpupower frequency-set -g performance",
    )


def _throttling(system: Path) -> Finding:
    pattern = "devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count"
    counts = [int(text) for path in system.glob(pattern) if (text := read_text(path))]
    if not counts:
        return _unknown("throttling", system / pattern)
    return _judged(
        "throttling",
        not any(counts),
        f"{sum(counts)} times since boot" if any(counts) else "none since boot",
        "a hot processor lowers its clock in the middle of a run",
        "improve cooling, or lower the power limit to what can be held",
    )


def _load(proc: Path, num_cores: int) -> Finding:
    text = read_text(proc / "loadavg")
    if text is None:
        return _unknown("other load", proc / "loadavg")
    load = float(text.split()[0])
    return _judged(
        "other load",
        load <= BUSY_SHARE * num_cores,
        f"{load:.2f} runnable threads over the last minute, {num_cores} cores",
        "visits wait for a core, some of them for many milliseconds",
        "stop other programs (top shows them), wait a minute, look again",
    )


def _stolen(proc: Path) -> Finding:
    line = (read_text(proc / "stat") or "").partition("\n")[0].split()
    if len(line) < 9 or line[0] != "cpu":
        return _unknown("time taken by the host", proc / "stat")
    ticks = [int(value) for value in line[1:9]]
    busy = sum(ticks) - ticks[3] - ticks[4]
    stolen = ticks[7] / busy if busy else 0.0
    return _judged(
        "time taken by the host",
        stolen <= STOLEN_SHARE,
        f"{stolen:.1%} of the busy time since boot",
        "other guests of the same host run on these cores",
        "rent dedicated cores; trust speedups of one run, not its latencies",
    )


def _threads(num_threads: int, num_cores: int) -> Finding:
    return _judged(
        "threads",
        num_threads <= num_cores,
        f"{num_threads} compute threads on {num_cores} cores",
        "threads take turns on a core, and every parallel section waits",
        f"OMP_NUM_THREADS={num_cores}",
    )


def _quota(system: Path, num_cores: int) -> Finding:
    text = read_text(system / "fs/cgroup/cpu.max")
    if text is None:
        return _unknown("processor quota", system / "fs/cgroup/cpu.max")
    quota, _, period = text.partition(" ")
    if quota == "max":
        return Finding("processor quota", "good", "none")
    allowed = float(quota) / float(period)
    return _judged(
        "processor quota",
        allowed >= num_cores,
        f"{allowed:g} of {num_cores} cores",
        "the process is stopped for the rest of every period once its share is used up",
        f"raise the container's limit to {num_cores} cores, or use fewer threads",
    )


def _huge_pages(system: Path) -> Finding:
    path = system / "kernel/mm/transparent_hugepage/enabled"
    text = read_text(path)
    if text is None:
        return _unknown("huge pages", path)
    chosen = text.partition("[")[2].partition("]")[0]
    return _judged(
        "huge pages",
        chosen == "always",
        chosen,
        "weights lie in pages of 4 KiB: translating addresses costs bandwidth, differently in "
        "every process",
        f"echo always > {path}",
    )


def _swap(proc: Path) -> Finding:
    sizes = {}
    for line in (read_text(proc / "meminfo") or "").splitlines():
        key, _, value = line.partition(":")
        sizes[key] = float(value.split()[0]) * 1024 if value.split() else 0.0
    if "SwapTotal" not in sizes:
        return _unknown("swap", proc / "meminfo")
    used = sizes["SwapTotal"] - sizes.get("SwapFree", 0.0)
    return _judged(
        "swap",
        used <= 0,
        f"{used / 2**20:.0f} MiB in use" if used > 0 else "none in use",
        "weights may be read from disk",
        "free memory, then swapoff -a",
    )


def _numa_balancing(proc: Path, system: Path) -> Finding:
    text = read_text(proc / "sys/kernel/numa_balancing")
    nodes = len([*system.glob("devices/system/node/node[0-9]*")])
    if text is None or nodes <= 1:
        return Finding("NUMA balancing", "good", "one memory node or no balancing")
    return _judged(
        "NUMA balancing",
        text == "0",
        "off" if text == "0" else f"on, {nodes} memory nodes",
        "pages move between nodes while they are used",
        "echo 0 > /proc/sys/kernel/numa_balancing, and bind with numactl",
    )


def _gpus(nvml: Any, devices: Path) -> Iterator[Finding]:
    boards = len([*devices.glob("nvidia[0-9]*")])
    binding = open_nvml(nvml)
    count = 0 if binding is None else int(answer(binding.nvmlDeviceGetCount) or 0)
    if not count:
        yield _judged(
            "NVML" if boards else "GPU",
            not boards,
            f"{boards} device files and no NVML" if boards else "none: runs are on the processor",
            "no joules, no clocks, no throttle reasons, and other users of the board unseen",
            "install the driver's libnvidia-ml.so.1 and nvidia-ml-py",
        )
    for index in range(count):
        handle = answer(binding.nvmlDeviceGetHandleByIndex, index)
        if handle is None:
            yield Finding(f"GPU {index}", "unknown", "NVML gives no handle", "it may be lost")
        else:
            yield from _gpu(binding, handle, index)


def _gpu(nvml: Any, handle: Any, index: int) -> Iterator[Finding]:
    def ask(function: str) -> Any:
        value = answer(lambda: getattr(nvml, function)(handle))
        return value[0] if isinstance(value, list | tuple) else value

    def unknown(name: str) -> Finding:
        return Finding(f"GPU {index} {name}", "unknown", "the board does not say")

    def switch(name: str, function: str, good: bool, meaning: str, remedy: str) -> Finding:
        """A mode of the board that spoils measurements unless it is `good`."""
        value = ask(function)
        if value is None:
            return unknown(name)
        seen = "on" if value else "off"
        return _judged(f"GPU {index} {name}", bool(value) is good, seen, meaning, remedy)

    yield switch(
        "persistence mode",
        "nvmlDeviceGetPersistenceMode",
        True,
        "the driver unloads between processes: the first calls take seconds, clocks start anew",
        "nvidia-smi -pm 1",
    )
    yield switch(
        "MIG",
        "nvmlDeviceGetMigMode",
        False,
        "a slice shares power and memory with others: no joules, unsteady latencies",
        f"nvidia-smi -i {index} -mig 0",
    )
    yield switch(
        "ECC",
        "nvmlDeviceGetEccMode",
        True,
        "bandwidth differs from the same board with ECC, as it is deployed",
        f"nvidia-smi -i {index} -e 1, and reboot",
    )
    reasons = clock_reasons(nvml, handle)
    if reasons is None:
        yield unknown("throttling")
    else:
        slow = [SLOWDOWNS[reason] for reason in reasons if reason in SLOWDOWNS]
        yield _judged(
            f"GPU {index} throttling",
            not slow,
            ", ".join(slow) or "no reason is active",
            "the clock is lower than the board could run",
            "let it cool, check airflow and the power limit",
        )
    percent, others = other_load(nvml, handle)
    if percent is None and others is None:
        yield unknown("other load")
        return
    yield _judged(
        f"GPU {index} other load",
        (percent or 0) <= BUSY_GPU_PERCENT and not others,
        f"{percent or 0} % busy, {others or 0} other processes",
        "kernels of others run in between",
        "wait, or choose another board with --device cuda:N",
    )
