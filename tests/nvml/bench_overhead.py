"""Cost of a reader that follows an energy counter, to the work beside it.

Run by `python tests/bench_instruments.py overhead`, in two and a half minutes. Two costs:

- **A neighbour.** The reader is a process of its own. One thread computes without a pause, in
  slices of 50 ms; in each pair of slices, in random order, the reader runs in one and is stopped
  (SIGSTOP) in the other. This reader never sleeps: the real one runs for 1 to 2 % of the time, and
  no paired run on a shared machine would show that. The real one costs that part of it.
- **Listening.** The thread that runs the load takes in what the reader wrote. In followed loads,
  with the reader at its own rate, this is the share of the thread's processor time outside the
  load's steps, less the same share of a load without a reader.

"together" is the sum of both. What a call costs inside a real driver is in neither.
"""

import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nvml.simulator import UUID, compile_library

from moebench.compare.intervals import Vector, center_limits, trimmed_mean
from moebench.measure.energy.meter import QUICK, Session, num_edges
from moebench.measure.energy.process import ReaderProcess
from moebench.report.document import Grid, markdown

PAIRS = 400
SLICE = 0.05
LOADS = 24
"""Followed and not, of about 1.5 s each."""
TICK = 0.1
SIZE = 256
"""Rows of the load's square matmul, which takes a fraction of a millisecond."""
LEARNT = 8
"""Edges after which the reader looks for the next where it expects it."""
GETS_GOING = 0.002
"""Seconds between a signal and the slice that it is for."""
CPU = torch.device("cpu")
RESTLESS = """
import os, select, sys
from moebench.measure.energy import reader
reader.UntilInput.wait = lambda clock, seconds: bool(select.select([sys.stdin], [], [], 0)[0])
reader.POLL = 0.0
sys.exit(reader.main(["gpu", str(os.open(os.devnull, os.O_WRONLY)), sys.argv[1], sys.argv[2]]))
"""

Steps = Callable[[int, int], None]


def matmuls() -> Steps:
    """The load: one thread's matmuls."""
    a, b = torch.randn(SIZE, SIZE), torch.randn(SIZE, SIZE)
    out = torch.empty(SIZE, SIZE)

    def visit(first_step: int, num_steps: int) -> None:
        for _ in range(num_steps):
            torch.mm(a, b, out=out)

    return visit


@contextmanager
def restless_reader() -> Iterator[int]:
    """A reader that looks at its counter all the time; its process id."""
    command = [sys.executable, "-c", RESTLESS, UUID.format(0), str(os.getpid())]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        try:
            time.sleep(3 * LEARNT * TICK)
            assert process.poll() is None, "the reader ended by itself"
            yield process.pid
        finally:
            process.kill()


def seconds_a_step(visit: Steps) -> float:
    """Mean seconds a step in one slice."""
    done, start = 0, time.perf_counter()
    while (now := time.perf_counter()) - start < SLICE:
        visit(done, 8)
        done += 8
    return (now - start) / done


def as_a_neighbour(visit: Steps, pairs: int) -> tuple[Vector, float]:
    """Logarithm of the slowdown in each pair; processor seconds the neighbour took a second."""
    ratios, order = [], random.Random(0)
    with restless_reader() as pid:
        used, begin = processor_seconds(pid), time.monotonic()
        for pair in range(pairs):
            found = {}
            for send in order.sample((signal.SIGCONT, signal.SIGSTOP), 2):
                os.kill(pid, send)
                time.sleep(GETS_GOING)
                found[send] = seconds_a_step(visit)
            ratios.append(math.log(found[signal.SIGCONT] / found[signal.SIGSTOP]))
            print(f"{pair + 1} of {pairs} pairs", end="\r", file=sys.stderr)
        os.kill(pid, signal.SIGCONT)
        # It was stopped for half of the time.
        share = 2 * (processor_seconds(pid) - used) / (time.monotonic() - begin)
    return np.array(ratios), share


def followed(visit: Steps) -> tuple[float, float]:
    """Share of the thread's processor time that listening takes; the reader's own a second."""
    with ReaderProcess(["gpu", UUID.format(0), str(os.getpid())]) as reader:
        Session(visit, CPU, [reader], QUICK).wait(lambda: num_edges(reader) >= LEARNT, 20.0)
        assert num_edges(reader) >= LEARNT
        pid = reader._process.pid
        alone = outside_the_steps(visit, [])
        begin, used = time.monotonic(), processor_seconds(pid)
        heard = outside_the_steps(visit, [reader])
        share = (processor_seconds(pid) - used) / (time.monotonic() - begin)
    return heard - alone, share


def outside_the_steps(visit: Steps, readers: Sequence[ReaderProcess]) -> float:
    """Share of a load's processor time."""
    inside = 0.0

    def timed(first_step: int, num_steps: int) -> None:
        nonlocal inside
        start = time.thread_time()
        visit(first_step, num_steps)
        inside += time.thread_time() - start

    own = time.thread_time()
    Session(timed, CPU, readers, QUICK).run_load(0, time.monotonic() + 10.0)
    return 1 - inside / (time.thread_time() - own)


def processor_seconds(pid: int) -> float:
    """Processor time of another process so far, by Linux's clock of that process."""
    return time.clock_gettime((~pid << 3) | 2)


def interval(values: Vector) -> dict[str, float]:
    """Centre and 95 % interval."""
    low, high = center_limits(values, seed=0)
    assert low is not None and high is not None, "so few pairs say nothing"
    return {"value": float(trimmed_mean(values)), "low": low, "high": high}


def measure() -> dict[str, Any]:
    """Both costs and their sum, as shares of the load's time."""
    torch.set_num_threads(1)
    visit = matmuls()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LD_LIBRARY_PATH"] = str(compile_library(Path(folder)).parent)
        os.environ["NVMLSIM"] = f"real=1;epoch={time.monotonic()};tick={TICK};trace=0:300"
        seconds_a_step(visit)
        slowdowns, restless = as_a_neighbour(visit, PAIRS)
        listening, shares = np.array([followed(visit) for _ in range(LOADS)]).T
    busy = float(np.mean(shares)) / restless
    total = {
        end: value + busy * interval(slowdowns)[end] for end, value in interval(listening).items()
    }
    return {
        "pairs": PAIRS,
        "together": total,
        "a neighbour that never sleeps slows the load by": interval(slowdowns),
        "its processor seconds a second": restless,
        "the reader's own processor seconds a second": float(np.mean(shares)),
        "listening, share of the load's thread": interval(listening),
    }


def table(record: Mapping[str, Any]) -> str:
    """The shares in Markdown."""
    rows = [
        (what, ", ".join(f"{100 * value[end]:.3f} %" for end in ("value", "low", "high")))
        for what, value in record.items()
        if isinstance(value, Mapping)
    ]
    rows += [(what, f"{value:.4f}") for what, value in record.items() if isinstance(value, float)]
    return markdown([Grid((f"{record['pairs']} pairs", "share, 95 % from, to"), rows)])
