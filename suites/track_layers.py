"""What asv follows over commits: the MoE layer's latency under each router, and start times.

The shapes are those of `tracked.toml`, which `python -m moebench.suite tracked` measures as well.
Everything is measured once per environment in `setup_cache`, by moebench's own instruments: asv's
timers do not know the device, and would set up the weights before every call. moebench is
imported inside functions, so that asv can list these benchmarks at any commit.
"""

import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from hashlib import sha256
from pathlib import Path

SUITE = Path(__file__).with_name("tracked.toml")
SHAPES = tomllib.loads(SUITE.read_text(encoding="utf-8"))
VERSION = sha256(SUITE.read_bytes()).hexdigest()
"""Results of other shapes are not comparable: asv drops results whose version differs."""
ROUTERS = [entry["name"] for entry in SHAPES["router"]]
PHASES = [entry["phase"] for entry in SHAPES["workload"]]
STARTS = 7


class Layers:
    """Seconds of one step of the MoE layer, the median of interleaved rounds."""

    params = (ROUTERS, PHASES)
    param_names = ("router", "phase")
    timeout = 600

    def setup_cache(self) -> dict[str, float]:
        """Measure every cell of the suite on the CPU; seconds by "router phase"."""
        import torch

        from moebench.measure.clocks import clock_for
        from moebench.measure.latency import Plan, measure_rounds
        from moebench.model.decoder import build_decoder
        from moebench.suite.cell import Bench
        from moebench.suite.plan import cells, runnable_cells
        from moebench.suite.prepare import prepare_cell
        from moebench.suite.suite_file import load_suite

        suite = load_suite(str(SUITE))
        device, dtype = torch.device("cpu"), getattr(torch, suite.file.dtype)
        device_plan = suite.device_plan("cpu")
        decoder = build_decoder(suite.model, device_plan.num_layers, dtype, device, suite.file.seed)
        bench = Bench(suite.model, decoder, device, dtype)
        planned, _ = runnable_cells(cells(suite, "cpu"), device, suite.model)
        seconds = {}
        for cell in planned:
            ready = prepare_cell(bench, cell, suite.file.plan.stream_tokens)
            visits = {case.case.router.name: ready.visit(case) for case in ready.cases}
            plan = Plan(
                device_plan.time_budget / len(planned),
                seed=suite.file.seed,
                stream_length=ready.num_steps,
            )
            rounds = measure_rounds(visits, clock_for(device), plan)
            for router, samples in rounds.samples.items():
                per_step = [sample.seconds / sample.num_steps for sample in samples]
                seconds[f"{router} {cell.workload.phase}"] = statistics.median(per_step)
        return seconds

    def track_latency(self, seconds: dict[str, float], router: str, phase: str) -> float:
        return seconds[f"{router} {phase}"]

    track_latency.unit = "s"  # type: ignore[attr-defined]
    track_latency.version = VERSION  # type: ignore[attr-defined]


def track_start(module: str) -> float:
    """Seconds from a fresh interpreter to an imported module, the best of a few."""
    best = float("inf")
    for _ in range(STARTS):
        start = time.perf_counter()
        command = [sys.executable, "-c", f"import {module}"]
        subprocess.run(command, check=True, cwd=tempfile.gettempdir())
        best = min(best, time.perf_counter() - start)
    return best


track_start.params = ["moebench.predict.cli", "moebench.report.cli", "moebench.suite.cli"]  # type: ignore[attr-defined]
track_start.param_names = ["module"]  # type: ignore[attr-defined]
track_start.unit = "s"  # type: ignore[attr-defined]
track_start.version = "1"  # type: ignore[attr-defined]
