"""What on a machine spoils measurements, and how to mend it.

Everything is read from files under `/proc` and `/sys` and from NVML; nothing is changed. What
cannot be read is "unknown" with the reason: a guest often cannot see what its host does.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from moebench.measure.nvml import foreign_processes, open_nvml

BUSY_SHARE = 0.25
"""Load beyond this share of the cores disturbs: with two threads every fourth visit waits."""
STOLEN_SHARE = 0.01
BUSY_GPU_PERCENT = 5
SLOWDOWN_REASONS = {
    "nvmlClocksThrottleReasonSwPowerCap": "power cap",
    "nvmlClocksThrottleReasonHwSlowdown": "hardware slowdown",
    "nvmlClocksThrottleReasonSwThermalSlowdown": "heat",
    "nvmlClocksThrottleReasonHwThermalSlowdown": "heat (hardware)",
    "nvmlClocksThrottleReasonHwPowerBrakeSlowdown": "power brake",
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    status: Literal["good", "bad", "unknown"]
    seen: str
    meaning: str = ""
    """What it does to measurements; empty where nothing is wrong."""
    remedy: str = ""
    """What to do about it."""


def inspect_machine(
    num_threads: int,
    num_cores: int,
    root: Path = Path("/"),
    nvml: Any = None,
) -> tuple[Finding, ...]:
    """Look at everything that is known to spoil measurements.

    Args:
        num_threads: that the framework computes with.
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


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def _unknown(name: str, path: Path) -> Finding:
    return Finding(
        name,
        "unknown",
        f"{path} cannot be read",
        "a guest or container may not see it: its host decides",
        "ask who runs the host, and compare runs by their reference operation",
    )


def _governor(system: Path) -> Finding:
    pattern = "devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor"
    found = sorted({text for path in system.glob(pattern) if (text := _read(path))})
    if not found:
        return _unknown("frequency governor", system / pattern)
    if found == ["performance"]:
        return Finding("frequency governor", "good", "performance on every core")
    return Finding(
        "frequency governor",
        "bad",
        ", ".join(found),
        "clocks follow the load: the first milliseconds of a visit run slower",
        "cpupower frequency-set -g performance",
    )


def _throttling(system: Path) -> Finding:
    pattern = "devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count"
    counts = [int(text) for path in system.glob(pattern) if (text := _read(path))]
    if not counts:
        return _unknown("throttling", system / pattern)
    if not any(counts):
        return Finding("throttling", "good", "none since boot")
    return Finding(
        "throttling",
        "bad",
        f"{sum(counts)} times since boot",
        "a hot processor lowers its clock in the middle of a run",
        "improve cooling, or lower the power limit to what can be held",
    )


def _load(proc: Path, num_cores: int) -> Finding:
    text = _read(proc / "loadavg")
    if text is None:
        return _unknown("other load", proc / "loadavg")
    load = float(text.split()[0])
    seen = f"{load:.2f} runnable threads over the last minute, {num_cores} cores"
    if load <= BUSY_SHARE * num_cores:
        return Finding("other load", "good", seen)
    return Finding(
        "other load",
        "bad",
        seen,
        "visits wait for a core, some of them for many milliseconds",
        "stop other programs (top shows them), wait a minute, look again",
    )


def _stolen(proc: Path) -> Finding:
    line = (_read(proc / "stat") or "").partition("\n")[0].split()
    if len(line) < 9 or line[0] != "cpu":
        return _unknown("time taken by the host", proc / "stat")
    ticks = [int(value) for value in line[1:9]]
    busy = sum(ticks) - ticks[3] - ticks[4]
    stolen = ticks[7] / busy if busy else 0.0
    seen = f"{stolen:.1%} of the busy time since boot"
    if stolen <= STOLEN_SHARE:
        return Finding("time taken by the host", "good", seen)
    return Finding(
        "time taken by the host",
        "bad",
        seen,
        "other guests of the same host run on these cores",
        "rent dedicated cores; trust speedups of one run, not its latencies",
    )


def _threads(num_threads: int, num_cores: int) -> Finding:
    seen = f"{num_threads} compute threads on {num_cores} cores"
    if num_threads == num_cores:
        return Finding("threads", "good", seen)
    fewer = num_threads < num_cores
    return Finding(
        "threads",
        "good" if fewer else "bad",
        seen,
        "" if fewer else "threads take turns on a core, and every parallel section waits",
        "" if fewer else f"OMP_NUM_THREADS={num_cores}",
    )


def _quota(system: Path, num_cores: int) -> Finding:
    text = _read(system / "fs/cgroup/cpu.max")
    if text is None:
        return _unknown("processor quota", system / "fs/cgroup/cpu.max")
    quota, _, period = text.partition(" ")
    if quota == "max":
        return Finding("processor quota", "good", "none")
    allowed = float(quota) / float(period)
    seen = f"{allowed:g} of {num_cores} cores"
    if allowed >= num_cores:
        return Finding("processor quota", "good", seen)
    return Finding(
        "processor quota",
        "bad",
        seen,
        "the process is stopped for the rest of every period once its share is used up",
        f"raise the container's limit to {num_cores} cores, or use fewer threads",
    )


def _huge_pages(system: Path) -> Finding:
    path = system / "kernel/mm/transparent_hugepage/enabled"
    text = _read(path)
    if text is None:
        return _unknown("huge pages", path)
    chosen = text.partition("[")[2].partition("]")[0]
    if chosen == "always":
        return Finding("huge pages", "good", "always")
    return Finding(
        "huge pages",
        "bad",
        chosen,
        "weights lie in pages of 4 KiB: translating addresses costs bandwidth, differently in "
        "every process",
        f"echo always > {path}",
    )


def _swap(proc: Path) -> Finding:
    facts = {}
    for line in (_read(proc / "meminfo") or "").splitlines():
        key, _, value = line.partition(":")
        facts[key] = float(value.split()[0]) * 1024 if value.split() else 0.0
    if "SwapTotal" not in facts:
        return _unknown("swap", proc / "meminfo")
    used = facts["SwapTotal"] - facts.get("SwapFree", 0.0)
    if used <= 0:
        return Finding("swap", "good", "none in use")
    return Finding(
        "swap",
        "bad",
        f"{used / 2**20:.0f} MiB in use",
        "weights may be read from disk",
        "free memory, then swapoff -a",
    )


def _numa_balancing(proc: Path, system: Path) -> Finding:
    text = _read(proc / "sys/kernel/numa_balancing")
    nodes = len([*system.glob("devices/system/node/node[0-9]*")])
    if text is None or nodes <= 1:
        return Finding("NUMA balancing", "good", "one memory node or no balancing")
    if text == "0":
        return Finding("NUMA balancing", "good", "off")
    return Finding(
        "NUMA balancing",
        "bad",
        f"on, {nodes} memory nodes",
        "pages move between nodes while they are used",
        "echo 0 > /proc/sys/kernel/numa_balancing, and bind with numactl",
    )


def _gpus(nvml: Any, devices: Path) -> Iterator[Finding]:
    boards = len([*devices.glob("nvidia[0-9]*")])
    binding = open_nvml(nvml)
    count = 0 if binding is None else int(_asked(binding.nvmlDeviceGetCount) or 0)
    if not count:
        if not boards:
            yield Finding("GPU", "good", "none: runs are on the processor")
            return
        yield Finding(
            "NVML",
            "bad",
            f"{boards} device files and no NVML",
            "no joules, no clocks, no throttle reasons, and other users of the board unseen",
            "install the driver's libnvidia-ml.so.1 and nvidia-ml-py",
        )
        return
    for index in range(count):
        handle = _asked(lambda index=index: binding.nvmlDeviceGetHandleByIndex(index))  # type: ignore[misc]
        if handle is None:
            yield Finding(f"GPU {index}", "unknown", "NVML gives no handle", "it may be lost")
            continue
        yield from _gpu(binding, handle, index)


def _gpu(nvml: Any, handle: Any, index: int) -> Iterator[Finding]:
    def ask(function: str) -> Any:
        value = _asked(lambda: getattr(nvml, function)(handle))
        return value[0] if isinstance(value, list | tuple) else value

    def mode(name: str, function: str, is_bad: bool, meaning: str, remedy: str) -> Finding:
        """A switch that spoils measurements when it stands at `is_bad`."""
        title, value = f"GPU {index} {name}", ask(function)
        if value is None:
            return Finding(title, "unknown", "the board does not say")
        seen = "on" if value else "off"
        if bool(value) is not is_bad:
            return Finding(title, "good", seen)
        return Finding(title, "bad", seen, meaning, remedy)

    yield mode(
        "persistence mode",
        "nvmlDeviceGetPersistenceMode",
        False,
        "the driver unloads between processes: the first calls take seconds, clocks start anew",
        "nvidia-smi -pm 1",
    )
    yield mode(
        "MIG",
        "nvmlDeviceGetMigMode",
        True,
        "a slice shares power and memory with others: no joules, unsteady latencies",
        f"nvidia-smi -i {index} -mig 0",
    )
    yield mode(
        "ECC",
        "nvmlDeviceGetEccMode",
        False,
        "bandwidth differs from the same board with ECC, as it is deployed",
        f"nvidia-smi -i {index} -e 1, and reboot",
    )
    reasons = ask("nvmlDeviceGetCurrentClocksThrottleReasons")
    slow = [
        text
        for name, text in SLOWDOWN_REASONS.items()
        if reasons is not None and int(reasons) & int(getattr(nvml, name, 0))
    ]
    if reasons is None:
        yield Finding(f"GPU {index} throttling", "unknown", "the board does not say")
    elif slow:
        yield Finding(
            f"GPU {index} throttling",
            "bad",
            ", ".join(slow),
            "the clock is lower than the board could run",
            "let it cool, check airflow and the power limit",
        )
    else:
        yield Finding(f"GPU {index} throttling", "good", "no reason is active")
    use = ask("nvmlDeviceGetUtilizationRates")
    others = _asked(lambda: foreign_processes(nvml, handle, is_ours=False))
    if use is None and others is None:
        yield Finding(f"GPU {index} other load", "unknown", "the board does not say")
        return
    percent = 0 if use is None else int(use.gpu)
    seen = f"{percent} % busy, {others or 0} other processes"
    if percent > BUSY_GPU_PERCENT or others:
        yield Finding(
            f"GPU {index} other load",
            "bad",
            seen,
            "kernels of others run in between",
            "wait, or choose another board with --device cuda:N",
        )
    else:
        yield Finding(f"GPU {index} other load", "good", seen)


def _asked(question: Callable[[], Any]) -> Any:
    try:
        return question()
    except Exception:  # every binding and driver has its own way to say no
        return None
