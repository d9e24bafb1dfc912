"""Errors of zeus and codecarbon on the same simulated board and traces as moebench.

Run by `python tests/bench_instruments.py peers`, which installs both in a throw-away environment.
Time is virtual: all three read the same library, and the load between "begin" and "end" takes no
real time.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from nvml.loads import QUICK, Case, Load, play, random_case
from nvml.simulator import Simulator, compile_library

ROOT = Path(__file__).parents[2]
PEERS = ("zeus==0.16.0", "codecarbon==3.3.2")
LENGTHS = (0.15, 1.0, 5.0)
TRACES = 40
WATTS = 300.0
FAULTS: dict[str, dict[str, float]] = {
    "counter set to zero": {"reset_at": 3.0},
    "counter frozen": {"freeze_at": 3.0},
    "counter jumps by 1000 J": {"jump_at": 3.0, "jump_mj": 1e6},
    "counter goes back by 40 J": {"jump_at": 3.0, "jump_mj": -40_000.0},
    "board lost": {"lost_at": 3.0},
    "MIG switched on": {"mig": 1.0},
}


def board(simulator: Simulator, seed: int, **faults: float) -> None:
    """300 W for a long time, a tick of 100 ms at a random phase."""
    simulator.library.nvmlsim_reset()
    phase = float(np.random.default_rng(seed).uniform(0, 0.1))
    simulator.set(seed=seed, tick=0.1, jitter=0.05, phase=phase, energy_latency=0.002, **faults)
    simulator.trace([0, 1000], [WATTS, WATTS])
    simulator.library.nvmlInitWithFlags(0)
    simulator.advance(2.0)


def zeus(simulator: Simulator) -> Callable[[float], float]:
    from zeus.monitor import ZeusMonitor

    monitor = ZeusMonitor(gpu_indices=[0])

    def window(seconds: float) -> float:
        monitor.begin_window("w", sync_execution=False)
        simulator.advance(seconds)
        return float(monitor.end_window("w", sync_execution=False).gpu_energy[0])

    return window


def codecarbon(simulator: Simulator) -> Callable[[float], float]:
    from codecarbon import OfflineEmissionsTracker

    def window(seconds: float) -> float:
        tracker = OfflineEmissionsTracker(
            country_iso_code="USA",
            save_to_file=False,
            log_level="critical",
            gpu_ids=[0],
            measure_power_secs=10_000,
            allow_multiple_runs=True,
        )
        tracker.start()
        simulator.advance(seconds)
        tracker.stop()
        return float(tracker._total_gpu_energy.kWh) * 3.6e6

    return window


START: dict[str, Callable[[Simulator], Callable[[float], float]]] = {
    "zeus": zeus,
    "codecarbon": codecarbon,
}


def attempt(window: Callable[[float], float], seconds: float) -> str:
    try:
        joules = window(seconds)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:60]}"
    return f"{joules:,.0f} J"


def peer(name: str, library: Path) -> dict[str, Any]:
    """Errors and outcomes of a peer; runs in its environment."""
    simulator = Simulator(library)
    simulator.binding()
    # Both divide by durations: they must see the board's clock, and see it before they load.
    time.time = time.perf_counter = simulator.now
    found: dict[str, Any] = {}
    start = START[name]
    for seconds in LENGTHS:
        errors = []
        for seed in range(TRACES):
            board(simulator, seed)
            window = start(simulator)
            # Not a multiple of the tick, which would hide what a window's ends miss.
            length = seconds * float(np.random.default_rng(seed).uniform(0.9, 1.1))
            errors.append(abs(window(length) / (WATTS * length) - 1))
        found[f"{seconds:g} s"] = f"{np.quantile(errors, 0.95):.2%}"
    for fault, settings in FAULTS.items():
        late = settings if "mig" in settings else {}
        board(simulator, 1, **late)
        try:
            window = start(simulator)
        except Exception as error:
            found[fault] = f"{type(error).__name__}: {str(error).splitlines()[0][:60]}"
            continue
        simulator.set(**settings)
        found[fault] = attempt(window, 2.0)
    return found


def ours(library: Path) -> dict[str, Any]:
    """Errors and outcomes of moebench: windows of steady loads, and joules of a step of 3 J."""
    simulator = Simulator(library)
    found: dict[str, Any] = {}
    for seconds in LENGTHS:
        plan = replace(QUICK, length=seconds)
        outcomes = []
        for seed in range(TRACES):
            case = random_case(seed, "steady", plan, 0.1)
            load = replace(case.load, watts=WATTS, noise=0.0)
            plain = {"tick": 0.1, "jitter": 0.05, "energy_latency": 0.002, "seed": seed}
            phase = {"phase": case.settings["phase"]}
            outcomes.append(play(simulator, replace(case, load=load, settings=plain | phase)))
        refused = next((o.energy.fault for o in outcomes if o.energy.fault), None)
        errors = [abs(j / o.truth - 1) for o in outcomes for j in o.energy.windows]
        half = np.mean([o.energy.high / o.energy.joules - 1 for o in outcomes])
        stated = f"{np.quantile(errors, 0.95):.2%} (states ±{half:.2%} for five)"
        found[f"{seconds:g} s"] = refused or stated
    for fault, settings in FAULTS.items():
        case = Case(Load("steady", 0.01, WATTS), {"tick": 0.1, "phase": 0.03, **settings})
        energy = play(simulator, case).energy
        number = "none" if energy.joules is None else f"{energy.joules:.3f} J a step, polled"
        found[fault] = f"{number} ({energy.fault})"
    return found


def measure() -> dict[str, Any]:
    """Errors and outcomes of each tool, under "columns"."""
    with tempfile.TemporaryDirectory() as folder:
        library = compile_library(Path(folder))
        environment = Path(folder, "environment")
        venv.create(environment, with_pip=True)
        python = environment / "bin" / "python"
        subprocess.run([python, "-m", "pip", "install", "-q", *PEERS, "numpy"], check=True)
        # codecarbon looks for a GPU by running this program.
        smi = environment / "bin" / "nvidia-smi"
        smi.write_text("#!/bin/sh\n")
        smi.chmod(0o755)
        path = f"{smi.parent}{os.pathsep}{os.environ['PATH']}"
        modules = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
        columns = {}
        for name in START:
            done = subprocess.run(
                [python, "-m", "nvml.bench_peers", name, library],
                env={**os.environ, "PYTHONPATH": modules, "PATH": path},
                capture_output=True,
                text=True,
            )
            if done.returncode:
                raise SystemExit(f"{name} failed:\n{done.stderr}")
            columns[name] = json.loads(done.stdout.splitlines()[-1])
        columns["moebench"] = ours(library)
    return {"columns": columns}


def table(record: Mapping[str, Mapping[str, Mapping[str, str]]]) -> str:
    """One row for each length and fault in Markdown, one column for each tool."""
    from moebench.report.document import Grid, markdown

    columns = record["columns"]
    rows = [(row, *(columns[name][row] for name in columns)) for row in columns["moebench"]]
    titles = ["", *(name.replace("==", " ") for name in PEERS), "moebench"]
    return markdown([Grid(titles, rows, range(4))])


if __name__ == "__main__":
    print(json.dumps(peer(sys.argv[1], Path(sys.argv[2]))))
