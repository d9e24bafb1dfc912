"""Processes that run expert backends.

Backends that bring a matmul library of their own get a process of their own: two such libraries
in one process have crashed each other. The processes take turns, so that nothing runs beside what
is timed, and draw the same weights and the same steps from the same seeds.
"""

from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch

from moebench.experts.catalogue import EXPERT_BACKENDS
from moebench.measure.host import processes_time
from moebench.records.experts_run import ExpertsCell
from moebench.suite.expert_bench import ExpertBench, matmul_size
from moebench.units import Bytes, Seconds

SHARED = "the backends that share one"


class Workers:
    """One process for the backends that can share it, one for each that cannot.

    They serve one shape: a process does not give back all memory of the matrices that it copied.
    """

    def __init__(self, backends: Sequence[str], device: str, scratch: Bytes) -> None:
        self.backends = backends
        self.matmul_size = matmul_size(torch.device(device))
        own = [name for name in backends if EXPERT_BACKENDS[name].owns_process]
        self._ends: dict[str, Connection] = {}
        self._processes = []
        context = get_context("spawn")
        # Backends that hold nothing but a copy open first, while there is memory for both.
        for home in (*own, SHARED):
            self._ends[home], there = context.Pipe()
            alone = "" if home == SHARED else home
            arguments = (there, device, torch.get_num_threads(), scratch, alone)
            process = context.Process(target=serve, args=arguments, daemon=True)
            process.start()
            self._processes.append(process)

    def ask(self, what: str, name: str, *arguments: Any) -> Any:
        """Have the process of a backend do something, and wait for its answer."""
        end = self._ends.get(what, self._ends[SHARED])
        try:
            end.send((name, arguments))
            answer = end.recv()
        except (EOFError, OSError):
            raise RuntimeError(f"the process of {what} died") from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def open(self, plan: ExpertsCell, seed: int, routers: tuple[str, ...]) -> dict[str, list[Any]]:
        """Build the weights and steps of a cell in every process; the load of each step by mix."""
        loads: dict[str, list[Any]] = {}
        for home in self._ends:
            loads = self.ask(home, "open", plan, seed, routers if home == SHARED else ())
        return loads

    def processor_time(self) -> Seconds:
        """Processor time of this process and of all workers."""
        return processes_time(process.pid or 0 for process in self._processes)

    def close(self) -> None:
        """End the processes."""
        for end in self._ends.values():
            with suppress(OSError):  # it died
                end.send(None)
        for process in self._processes:
            process.join()


def serve(connection: Connection, *arguments: Any) -> None:
    """Answer calls of an `ExpertBench` of these arguments until None comes; errors are answers."""
    bench = ExpertBench(*arguments)
    while (order := connection.recv()) is not None:
        name, arguments = order
        try:
            connection.send(getattr(bench, name)(*arguments))
        except Exception as error:
            connection.send(RuntimeError(f"{type(error).__name__}: {error}"))
