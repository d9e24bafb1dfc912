"""Every way in which a board can fail to have an energy, and what the user then sees.

`PYTHONPATH=tests python -m nvml.faults` prints the table of faults.md.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from nvml.loads import QUICK, Case, Load, measure, schedule
from nvml.simulator import UUID, Simulator, compile_library

from moebench.records.energy import Energy

COUNTER, POWER, FIELDS = (
    "nvmlDeviceGetTotalEnergyConsumption",
    "nvmlDeviceGetPowerUsage",
    "nvmlDeviceGetFieldValues",
)
STEADY = Case(
    Load("steady", step=0.01, watts=300.0),
    {"tick": 0.1, "phase": 0.03, "energy_latency": 0.002},
)
JOULES = 3.0
"""A step of `STEADY`."""
LATE = 4.03
"""A moment inside the second of five loads."""
IDLE = 0.5

Outcome = Literal["none", "polled", "joules"]


@dataclass(frozen=True)
class FaultCase:
    """Something that goes wrong, and what must come of it."""

    name: str
    apply: Callable[[Simulator], object]
    outcome: Outcome
    """No joules; joules of polled power, labelled; joules of the counter, for all that."""
    kind: str | None
    """Kind of the fault, or of the caveat where the counter's joules stand."""
    case: Case = STEADY
    uuid: str = UUID.format(0)
    defines: tuple[str, ...] = ()
    """The library is compiled with these."""
    tolerance: float = 0.005
    """Largest relative error of the joules."""


def settings(**values: float) -> Callable[[Simulator], object]:
    return lambda simulator: simulator.set(**values)


def failing(function: str, code: int, start: float = -1e300) -> Callable[[Simulator], object]:
    return lambda simulator: simulator.fail(function, code, start)


def both(*steps: Callable[[Simulator], object]) -> Callable[[Simulator], object]:
    return lambda simulator: [step(simulator) for step in steps]


def two_boards(simulator: Simulator) -> None:
    simulator.set(num_boards=2)
    simulator.trace([0, 100], [50, 50])  # the first board; ours is the second
    _, points, _ = schedule(STEADY)
    simulator.trace(points[:, 0], points[:, 1], board=1)
    simulator.set(1, **STEADY.settings)


def no_instant(start: float = -1e300) -> Callable[[Simulator], object]:
    return lambda simulator: simulator.fail_field(186, 3, start)


LONG = replace(STEADY, plan=replace(QUICK, settle=1.2))
NAMES = {
    3: "not supported",
    4: "no permission",
    10: "timeout",
    15: "GPU is lost",
    16: "needs reset",
}
KIND = {
    3: "not-supported",
    4: "no-permission",
    10: "timeout",
    15: "gpu-lost",
    16: "reset-required",
    999: "unknown",
}

FAULTS = (
    # Before anything is measured.
    FaultCase("driver not loaded", settings(init_code=9), "none", "driver-not-loaded"),
    FaultCase("library missing", settings(init_code=12), "none", "no-library"),
    FaultCase("driver and library differ", settings(init_code=18), "none", "version-mismatch"),
    FaultCase("no permission to use NVML", settings(init_code=4), "none", "no-permission"),
    FaultCase("NVML fails to start, unknown why", settings(init_code=999), "none", "unknown"),
    FaultCase("board unknown", settings(), "none", "not-found", uuid="GPU-11111111-0000"),
    FaultCase("id of a MIG partition", settings(), "none", "not-found", uuid="MIG-0000"),
    FaultCase("id that is no UUID", settings(), "none", "invalid-argument", uuid="0"),
    FaultCase("board lost before the start", settings(lost_at=-1), "none", "gpu-lost"),
    FaultCase("MIG switched on", settings(mig=1), "none", "mig"),
    FaultCase(
        "two other processes compute",
        both(settings(pid=1234567), settings(pid=1234568)),
        "none",
        "shared-board",
    ),
    FaultCase(
        "our process and another",
        both(settings(pid=1), settings(pid=1234567)),
        "none",
        "shared-board",
    ),
    FaultCase(
        "NVML hides who else computes",
        failing("nvmlDeviceGetComputeRunningProcesses_v3", 4),
        "none",
        "no-permission",
    ),
    FaultCase("power of the whole module only", settings(module_scope=1), "none", "module-scope"),
    # The counter refuses from the start: power is polled instead.
    *(
        FaultCase(
            f"counter: {NAMES.get(code, 'unknown error')}",
            failing(COUNTER, code),
            "polled",
            KIND[code],
        )
        for code in (3, 4, 10, 15, 16, 999)
    ),
    FaultCase(
        "counter: not in this driver",
        settings(),
        "polled",
        "function-not-found",
        defines=("-DWITHOUT_ENERGY",),
    ),
    # The counter fails while it is followed.
    *(
        FaultCase(
            f"counter, in a window: {NAMES.get(code, 'unknown error')}",
            failing(COUNTER, code, LATE),
            "polled",
            KIND[code],
        )
        for code in (3, 10, 16, 999)
    ),
    FaultCase(
        "counter set to zero in a window", settings(reset_at=LATE), "polled", "counter-reset"
    ),
    FaultCase("counter set to zero while idle", settings(reset_at=IDLE), "polled", "counter-reset"),
    FaultCase(
        "counter goes back by 5 J",
        settings(jump_at=LATE, jump_mj=-40_000),
        "polled",
        "counter-reset",
    ),
    FaultCase(
        "counter jumps by 1000 J", settings(jump_at=LATE, jump_mj=1e6), "polled", "counter-jumped"
    ),
    FaultCase(
        "counter jumps by 2^32 mJ",
        settings(jump_at=LATE, jump_mj=2.0**32),
        "polled",
        "counter-jumped",
    ),
    FaultCase(
        "32-bit counter wraps in a window",
        settings(wrap32=1, start_mj=2.0**32 - 600_000),
        "polled",
        "counter-reset",
    ),
    FaultCase("counter frozen from the start", settings(freeze_at=0), "polled", "counter-frozen"),
    FaultCase("counter freezes in a window", settings(freeze_at=LATE), "polled", "counter-frozen"),
    FaultCase("counter supported but always 0", settings(zero=1), "polled", "counter-frozen"),
    FaultCase("counter stuck at 2^64 - 1", settings(energy_raw=1.8e19), "polled", "counter-frozen"),
    FaultCase("counter moves every 4 s", settings(tick=4), "polled", "window-too-short"),
    FaultCase(
        "three windows of a counter that moves every second",
        settings(tick=1),
        "polled",
        "window-too-short",
        case=replace(
            STEADY, plan=replace(QUICK, windows=3), settings={**STEADY.settings, "tick": 1.0}
        ),
    ),
    FaultCase("counter in microjoules", settings(counter_gain=1000), "polled", "counter-jumped"),
    FaultCase("counter in joules", settings(counter_gain=0.001), "none", "sources-disagree"),
    FaultCase("counter 60 % too high", settings(counter_gain=1.6), "none", "sources-disagree"),
    # Counter and power both.
    FaultCase("board lost in a window", settings(lost_at=LATE), "none", "gpu-lost"),
    FaultCase("board lost while idle", settings(lost_at=IDLE), "none", "gpu-lost"),
    FaultCase(
        "NVML shut down by somebody else",
        both(failing(COUNTER, 1, LATE), failing(POWER, 1, LATE), failing(FIELDS, 1, LATE)),
        "none",
        "uninitialised",
    ),
    FaultCase(
        "neither counter nor power",
        both(failing(COUNTER, 3), failing(POWER, 3), no_instant()),
        "none",
        "not-supported",
    ),
    FaultCase(
        "no counter, power reads 0",
        both(failing(COUNTER, 3), settings(power_raw=0)),
        "none",
        "not-supported",
    ),
    FaultCase(
        "no counter, power reads 2^32 - 1",
        both(failing(COUNTER, 3), settings(power_raw=2.0**32 - 1)),
        "none",
        "not-supported",
    ),
    FaultCase(
        "no counter, power fails in a window",
        both(failing(COUNTER, 3), failing(FIELDS, 15, LATE), failing(POWER, 15, LATE)),
        "none",
        "not-supported",
    ),
    FaultCase(
        "no counter, only a mean over 1 s, loads too short for it",
        both(failing(COUNTER, 3), no_instant()),
        "none",
        "not-supported",
    ),
    FaultCase(
        "no counter, only a mean over 1 s, loads long enough",
        both(failing(COUNTER, 3), no_instant()),
        "polled",
        "not-supported",
        case=LONG,
        tolerance=0.02,
    ),
    # Power fails, the counter does not: its joules stand.
    FaultCase("power field: not supported", no_instant(), "joules", "energy-unchecked"),
    FaultCase(
        "power field: GPU is lost", lambda s: s.fail_field(186, 15), "joules", "energy-unchecked"
    ),
    FaultCase("all field values refused", failing(FIELDS, 3), "joules", "energy-unchecked"),
    FaultCase(
        "no power reading at all",
        both(failing(FIELDS, 3), failing(POWER, 3)),
        "joules",
        "energy-unchecked",
    ),
    FaultCase("power reads 0", settings(power_raw=0), "joules", "energy-unchecked"),
    FaultCase(
        "power reads 2^32 - 1", settings(power_raw=2.0**32 - 1), "joules", "energy-unchecked"
    ),
    # Doubtful, and said so.
    FaultCase(
        "counter 5 % off the power",
        settings(counter_gain=1.05),
        "joules",
        "energy-residual",
        tolerance=0.055,
    ),
    FaultCase(
        "thermal throttling",
        lambda s: s.timeline("reasons", [0, 3, 5], [0, 0x40, 0]),
        "joules",
        "throttled",
    ),
    FaultCase(
        "power brake for 20 ms, between two looks",
        lambda s: s.timeline("reasons", [0, LATE, LATE + 0.02], [0, 0x80, 0]),
        "joules",
        "throttled",
    ),
    # What looks like a fault and is none.
    FaultCase(
        "power-capped throughout", lambda s: s.timeline("reasons", [0], [0x4]), "joules", None
    ),
    FaultCase("counter starts at 2^32 - 1 mJ", settings(start_mj=2.0**32 - 1), "joules", None),
    FaultCase(
        "counter passes 2^32 mJ in a window", settings(start_mj=2.0**32 - 600_000), "joules", None
    ),
    FaultCase(
        "counter moves every second",
        settings(tick=1),
        "joules",
        None,
        case=replace(STEADY, settings={**STEADY.settings, "tick": 1.0}),
    ),
    FaultCase("calls take 7 ms", settings(energy_latency=0.007), "joules", None),
    FaultCase("a single process, which is ours", settings(pid=1), "joules", None),
    FaultCase(
        "clocks and temperature refused",
        both(
            failing("nvmlDeviceGetClockInfo", 3),
            failing("nvmlDeviceGetTemperature", 3),
            failing("nvmlDeviceGetCurrentClocksEventReasons", 3),
            failing("nvmlDeviceGetMigMode", 3),
            failing("nvmlDeviceGetEccMode", 3),
        ),
        "joules",
        None,
    ),
    FaultCase("boards numbered differently", two_boards, "joules", None, uuid=UUID.format(1)),
)


def run_fault(simulator: Simulator, fault: FaultCase) -> Energy:
    """Measure in virtual time with the fault applied."""
    simulator.library.nvmlsim_reset()
    simulator.set(**fault.case.settings)
    loads, points, until = schedule(fault.case)
    simulator.trace(points[:, 0], points[:, 1])
    fault.apply(simulator)
    return measure(simulator, fault.case, loads, until, fault.uuid)


def shown(energy: Energy) -> str:
    """What the user reads."""
    if energy.missing is not None:
        return f"no energy: {energy.missing}"
    said = [f"{caveat.kind}: {caveat.seen}" for caveat in energy.caveats]
    joules = f"{energy.joules:.3f} J by {energy.method}"
    return "; ".join([joules, *said])


def table() -> str:
    """The faults and what the user sees, as Markdown."""
    lines = [
        "<!-- written by `PYTHONPATH=tests python -m nvml.faults` -->",
        "A step of the load takes 3.000 J; the counter moves every 100 ms.",
        "",
        "| fault | kind | what the user sees |",
        "|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for index, fault in enumerate(FAULTS):
            place = Path(folder, str(index if fault.defines else "plain"))
            library = place / "libnvidia-ml.so.1"
            if not library.exists():
                place.mkdir()
                compile_library(place, *fault.defines)
            energy = run_fault(Simulator(library), fault)
            lines.append(f"| {fault.name} | {fault.kind or 'none'} | {shown(energy)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
