"""What following a counter costs the work: the same load with and without the energy reader.

`PYTHONPATH=tests python -m nvml.overhead [PAIRS]` takes about 4.5 s a pair. Each pair is one load
alone and one followed as `measure_energy` does it (the reader's process at its own rate, on the
simulated library in real time, and this process listening to it), in random order. The load is
one thread that computes without a pause, as a CPU's work does; on a GPU one chunk is launched
ahead, which hides the listening.

Given are elapsed time, processor time of the computing thread (free of what other programs take),
and the processor time that the reader takes a second, which would be lost if it had no core of
its own. What a call costs inside a real driver is not in it.
"""

import json
import math
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from nvml.simulator import UUID, compile_library

from moebench.measure import energy as instrument
from moebench.measure.energy import QUICK
from moebench.measure.energy_process import Reader
from moebench.measure.energy_window import Stamps
from moebench.resampling import Vector, center_limits, trimmed_mean

PAIRS = 24
LENGTH = 1.5
"""About that of a followed load."""
TICK = 0.1
SIZE = 256
"""Of the load's matmul: a fraction of a millisecond."""
LEARNT = 8
"""Edges after which the reader looks for the next where it expects it."""
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Cost:
    """Of one step of a load."""

    elapsed: float
    processor: float
    """Of the thread that computes and listens: what other programs take is not in it."""


def seconds_a_step(stamps: Stamps) -> float:
    """Without the first quarter, in which the load gets going."""
    begin = len(stamps) // 4
    return (stamps[-1][0] - stamps[begin][0]) / (stamps[-1][1] - stamps[begin][1])


def alone(visit: Callable[[int, int], None]) -> Cost:
    """The load by itself, in the same chunks."""
    stamps = []
    done, num_steps = 0, 1
    begin = time.thread_time()
    deadline = time.monotonic() + LENGTH
    while not stamps or stamps[-1][0] < deadline:
        visit(done, num_steps)
        done += num_steps
        stamps.append((time.monotonic(), float(done)))
        if len(stamps) > 1:
            per_step = (stamps[-1][0] - stamps[0][0]) / (stamps[-1][1] - stamps[0][1])
            num_steps = max(1, round(instrument.CHUNK / per_step))
    return Cost(seconds_a_step(stamps), (time.thread_time() - begin) / done)


def followed(visit: Callable[[int, int], None]) -> tuple[Cost, float]:
    """A followed load; processor seconds of the reader in each of its seconds."""
    with ExitStack() as stack:
        reader = stack.enter_context(Reader(["gpu", UUID.format(0), str(os.getpid())]))
        instrument._wait([reader], lambda: instrument._num_edges(reader) >= LEARNT, 20.0)
        assert instrument._num_edges(reader) >= LEARNT
        begin, used, own = time.monotonic(), processor_seconds(reader), time.thread_time()
        stamps = instrument._run_load(visit, CPU, [reader], 0, QUICK, begin + 5 * LENGTH)
        own = (time.thread_time() - own) / stamps[-1][1]
        share = (processor_seconds(reader) - used) / (time.monotonic() - begin)
        return Cost(seconds_a_step(stamps), own), share


def processor_seconds(reader: Reader) -> float:
    """Of the reader's process so far: Linux's processor clock of another process."""
    return time.clock_gettime((~reader._process.pid << 3) | 2)


def interval(ratios: Vector) -> dict[str, float | None]:
    """Centre and 95 % interval of logarithmic ratios, as relative changes."""
    low, high = center_limits(ratios, seed=0)
    return {
        "value": float(np.expm1(trimmed_mean(ratios))),
        "low": None if low is None else float(np.expm1(low)),
        "high": None if high is None else float(np.expm1(high)),
    }


def main(arguments: list[str]) -> int:
    pairs = int(arguments[0]) if arguments else PAIRS
    torch.set_num_threads(1)
    a, b = torch.randn(SIZE, SIZE), torch.randn(SIZE, SIZE)
    out = torch.empty(SIZE, SIZE)

    def visit(first_step: int, num_steps: int) -> None:
        for _ in range(num_steps):
            torch.mm(a, b, out=out)

    costs: list[dict[str, Cost]] = []
    shares, order = [], random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LD_LIBRARY_PATH"] = str(compile_library(Path(folder)).parent)
        os.environ["NVMLSIM"] = f"real=1;epoch={time.monotonic()};tick={TICK};trace=0:300"
        alone(visit)
        for pair in range(pairs):
            costs.append({})
            for which in order.sample(("alone", "followed"), 2):
                if which == "alone":
                    costs[-1][which] = alone(visit)
                else:
                    costs[-1][which], share = followed(visit)
                    shares.append(share)
            print(f"{pair + 1} of {pairs}", end="\r", file=sys.stderr)
    summary: dict[str, object] = {"pairs": pairs}
    for what in ("elapsed", "processor"):
        ratios = [math.log(getattr(c["followed"], what) / getattr(c["alone"], what)) for c in costs]
        summary[f"{what} time, more by"] = interval(np.array(ratios))
    summary["reader's processor seconds a second"] = float(np.mean(shares))
    print(json.dumps(summary, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
