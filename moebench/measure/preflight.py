"""What on a machine spoils measurements, and how to mend it.

Everything is read from files under `/proc` and `/sys` and from NVML; nothing is changed. What
cannot be read is "unknown" with the reason: a guest often cannot see what its host does.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from moebench.measure.environment import read_text
from moebench.measure.nvml import answer, clock_reasons, open_nvml, other_load
from moebench.records.host import BUSY_GPU_PERCENT

BUSY_SHARE = 0.25
"""Load beyond this share of the cores disturbs: with two threads every fourth visit waits."""
STOLEN_SHARE = 0.01
SLOWDOWNS = {
    "power-cap": "power cap",
    "hw-slowdown": "hardware slowdown",
    "sw-thermal": "heat",
    "hw-thermal": "heat (hardware)",
    "power-brake": "power brake",
}
"""Reasons for lower clocks that spoil measurements, in words."""
Judgement = tuple[bool, str] | None
"""Whether all is well, and what was seen; None where the system does not say."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    status: Literal["good", "bad", "unknown"]
    seen: str
    meaning: str = ""
    """Effect on measurements; empty where nothing is wrong."""
    remedy: str = ""


def _governor(governors: Sequence[str], num_cores: int) -> Judgement:
    return {*governors} == {"performance"}, ", ".join(sorted({*governors}))


def _throttling(counts: Sequence[str], num_cores: int) -> Judgement:
    total = sum(map(int, counts))
    return total == 0, f"{total} times since boot" if total else "none since boot"


def _load(texts: Sequence[str], num_cores: int) -> Judgement:
    load = float(texts[0].split()[0])
    seen = f"{load:.2f} runnable threads over the last minute, {num_cores} cores"
    return load <= BUSY_SHARE * num_cores, seen


def _stolen(texts: Sequence[str], num_cores: int) -> Judgement:
    ticks = [int(value) for value in texts[0].partition("\n")[0].split()[1:9]]
    if len(ticks) < 8:
        return None
    busy = sum(ticks) - ticks[3] - ticks[4]
    stolen = ticks[7] / busy if busy else 0.0
    return stolen <= STOLEN_SHARE, f"{stolen:.1%} of the busy time since boot"


def _quota(texts: Sequence[str], num_cores: int) -> Judgement:
    quota, _, period = texts[0].partition(" ")
    if quota == "max":
        return True, "none"
    allowed = float(quota) / float(period)
    return allowed >= num_cores, f"{allowed:g} of {num_cores} cores"


def _huge_pages(texts: Sequence[str], num_cores: int) -> Judgement:
    chosen = texts[0].partition("[")[2].partition("]")[0]
    return chosen == "always", chosen


def _swap(texts: Sequence[str], num_cores: int) -> Judgement:
    sizes = dict(re.findall(r"(Swap\w+): +(\d+) kB", texts[0]))
    if "SwapTotal" not in sizes:
        return None
    used = int(sizes["SwapTotal"]) - int(sizes.get("SwapFree", 0))
    return used <= 0, f"{used / 1024:.0f} MiB in use" if used > 0 else "none in use"


FILES: tuple[tuple[str, str, Callable[[Sequence[str], int], Judgement], str, str], ...] = (
    (
        "frequency governor",
        "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor",
        _governor,
        "clocks follow the load: the first milliseconds of a visit run slower",
        "cpupower frequency-set -g performance",
    ),
    (
        "throttling",
        "sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count",
        _throttling,
        "a hot processor lowers its clock in the middle of a run",
        "improve cooling, or lower the power limit to what can be held",
    ),
    (
        "other load",
        "proc/loadavg",
        _load,
        "visits wait for a core, some of them for many milliseconds",
        "stop other programs (top shows them), wait a minute, look again",
    ),
    (
        "time taken by the host",
        "proc/stat",
        _stolen,
        "other guests of the same host run on these cores",
        "rent dedicated cores; trust speedups of one run, not its latencies",
    ),
    (
        "processor quota",
        "sys/fs/cgroup/cpu.max",
        _quota,
        "the process is stopped for the rest of every period once its share is used up",
        "raise the container's limit to {cores} cores, or use fewer threads",
    ),
    (
        "huge pages",
        "sys/kernel/mm/transparent_hugepage/enabled",
        _huge_pages,
        "weights lie in pages of 4 KiB: translating addresses costs bandwidth, differently in "
        "every process",
        "echo always > /sys/kernel/mm/transparent_hugepage/enabled",
    ),
    (
        "swap",
        "proc/meminfo",
        _swap,
        "weights may be read from disk",
        "free memory, then swapoff -a",
    ),
)
"""Name, files, judgement of their texts on so many cores, meaning and remedy of each finding."""
SWITCHES = (
    (
        "persistence mode",
        "nvmlDeviceGetPersistenceMode",
        True,
        "the driver unloads between processes: the first calls take seconds, clocks start anew",
        "nvidia-smi -pm 1",
    ),
    (
        "MIG",
        "nvmlDeviceGetMigMode",
        False,
        "a slice shares power and memory with others: no joules, unsteady latencies",
        "nvidia-smi -i {index} -mig 0",
    ),
    (
        "ECC",
        "nvmlDeviceGetEccMode",
        True,
        "bandwidth differs from the same board with ECC, as it is deployed",
        "nvidia-smi -i {index} -e 1, and reboot",
    ),
)
"""Name, NVML's function, the good state, meaning and remedy of each mode of a board."""


def inspect_machine(
    num_threads: int, num_cores: int, root: Path = Path("/"), nvml: Any = None
) -> tuple[Finding, ...]:
    """Look at all that is known to spoil measurements; `root` holds proc, sys and dev."""
    return (*_host(num_threads, num_cores, root), *_gpus(nvml, root / "dev"))


def _finding(
    name: str,
    judgement: Judgement,
    meaning: str,
    remedy: str,
    unknown: Sequence[str] = ("the board does not say",),
) -> Finding:
    """A finding; `meaning` and `remedy` belong to a bad one, `unknown` to one without judgement."""
    if judgement is None:
        return Finding(name, "unknown", *unknown)
    is_good, seen = judgement
    return Finding(name, "good", seen) if is_good else Finding(name, "bad", seen, meaning, remedy)


def _host(num_threads: int, num_cores: int, root: Path) -> Iterator[Finding]:
    for name, pattern, judge, meaning, remedy in FILES:
        texts = [text for path in root.glob(pattern) if (text := read_text(path))]
        unknown = (
            f"{root / pattern} cannot be read",
            "a guest or container may not see it: its host decides",
            "ask who runs the host, and compare runs by their reference operation",
        )
        judgement = judge(texts, num_cores) if texts else None
        yield _finding(name, judgement, meaning, remedy.format(cores=num_cores), unknown)
    yield _finding(
        "threads",
        (num_threads <= num_cores, f"{num_threads} compute threads on {num_cores} cores"),
        "threads take turns on a core, and every parallel section waits",
        f"OMP_NUM_THREADS={num_cores}",
    )
    balancing = read_text(root / "proc/sys/kernel/numa_balancing")
    nodes = len([*root.glob("sys/devices/system/node/node[0-9]*")])
    is_on = nodes > 1 and balancing not in (None, "0")
    yield _finding(
        "NUMA balancing",
        (not is_on, f"on, {nodes} memory nodes" if is_on else "one memory node or no balancing"),
        "pages move between nodes while they are used",
        "echo 0 > /proc/sys/kernel/numa_balancing, and bind with numactl",
    )


def _gpus(nvml: Any, devices: Path) -> Iterator[Finding]:
    boards = len([*devices.glob("nvidia[0-9]*")])
    binding = open_nvml(nvml)
    count = 0 if binding is None else int(answer(binding.nvmlDeviceGetCount) or 0)
    if not count:
        seen = f"{boards} device files and no NVML" if boards else "none: runs are on the processor"
        yield _finding(
            "NVML" if boards else "GPU",
            (not boards, seen),
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
    for name, function, good, meaning, remedy in SWITCHES:
        value = answer(lambda ask: getattr(nvml, ask)(handle), function)
        is_on = bool(value[0] if isinstance(value, list | tuple) else value)
        judgement = None if value is None else (is_on is good, "on" if is_on else "off")
        yield _finding(f"GPU {index} {name}", judgement, meaning, remedy.format(index=index))
    reasons = clock_reasons(nvml, handle)
    slow = [SLOWDOWNS[reason] for reason in reasons or () if reason in SLOWDOWNS]
    yield _finding(
        f"GPU {index} throttling",
        None if reasons is None else (not slow, ", ".join(slow) or "no reason is active"),
        "the clock is lower than the board could run",
        "let it cool, check airflow and the power limit",
    )
    percent, others = other_load(nvml, handle)
    is_quiet = (percent or 0) <= BUSY_GPU_PERCENT and not others
    seen = f"{percent or 0} % busy, {others or 0} other processes"
    yield _finding(
        f"GPU {index} other load",
        None if percent is None and others is None else (is_quiet, seen),
        "kernels of others run in between",
        "wait, or choose another board with --device cuda:N",
    )
