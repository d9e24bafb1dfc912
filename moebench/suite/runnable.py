"""Which planned cells run on this machine, and by which expert backend.

A backend that the user named runs or is refused. One that only the suite chose gives way to its
stand-in, and that to its own; every record then says what ran and why.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from moebench.experts.backends import why_not
from moebench.experts.catalogue import EXPERT_BACKENDS
from moebench.records.results import Caveat
from moebench.suite.plan import Cell, changed


def runnable_cells(
    planned: Sequence[Cell], device: torch.device, *, is_asked: bool = False
) -> tuple[tuple[Cell, ...], tuple[str, ...]]:
    """The cells that can run here, and a line for what is left out or executed by another backend.

    Args:
        planned: the cells.
        device: where they are to run.
        is_asked: the user named the backends; a suite's own choice gives way to its stand-in.

    Raises:
        ValueError: a backend does not run here, or must not share a process with another.
    """
    kept, said = [], []
    for cell in planned:
        dtype = getattr(torch, cell.workload.dtype)
        while (why := why_not(name := cell.baseline.backend, device, dtype)) is not None:
            stand_in = EXPERT_BACKENDS[name].stand_in
            if is_asked or stand_in is None:
                raise ValueError(f"expert backend {name!r} does not run here: {why}")
            caveats = (*cell.caveats, _instead(name, stand_in, why))
            cell = replace(changed(cell, backend=stand_in), caveats=caveats)
            said.append(f"expert backend {name!r} does not run here: {why}; {stand_in!r} runs")
        backend = EXPERT_BACKENDS[cell.baseline.backend]
        if cell.workload.phase == "train" and not backend.has_gradients:
            said.append(f"{cell.key}: left out, {backend.name!r} is for inference only")
        else:
            kept.append(cell)
    names = {cell.baseline.backend for cell in planned}
    for name in names:
        if EXPERT_BACKENDS[name].owns_process and len(names) > 1:
            raise ValueError(
                f"--experts: {name!r} brings a matmul library that must not share a process; "
                "run it by itself"
            )
    return tuple(kept), tuple(dict.fromkeys(said))


def _instead(name: str, stand_in: str, why: str) -> Caveat:
    return Caveat(
        "stand-in",
        f"expert backend {name!r}, the suite's choice, does not run here: {why}",
        f"{stand_in!r} ran instead; its speedups at few tokens may be others",
        "name the backend (--experts), or use a processor and a torch that have it",
    )
