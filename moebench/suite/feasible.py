"""What of a suite can never run, found before the machine is calibrated and a run is begun."""

from collections.abc import Sequence

import torch

from moebench.routers.routing import build_routers
from moebench.spec.execution import check_executed, unsupported
from moebench.suite.forecast import peak_memories
from moebench.suite.plan import Cell
from moebench.suite.suite_file import Suite
from moebench.units import Bytes, text


def check_feasible(suite: Suite, planned: Sequence[Cell], available: Bytes) -> None:
    """Refuse levels that are not executed, routers that cannot be built, and too little memory.

    A single case that does not fit, or fails, is a row of the run.
    """
    name = f"suite {suite.name}"
    if not planned:
        raise ValueError(f"{name}: none of its cells can run here")
    for level in sorted({cell.workload.level for cell in planned}):
        try:
            check_executed(suite.model, level)
        except ValueError as error:
            hint = "; levels = ['moe'] can be measured" * _runs_at_moe(suite, level)
            raise ValueError(f"{name}: {error}; --predict HARDWARE predicts it{hint}") from error
    dtype = getattr(torch, suite.file.dtype)
    with torch.device("meta"):
        for case, policy in zip(planned[0].cases, planned[0].policies, strict=True):
            try:
                build_routers(policy, suite.model, case.num_layers, dtype)
            except ValueError as error:
                raise ValueError(f"{name}: router {case.router.title}: {error}") from error
    needs = peak_memories(planned, suite.model)
    least = min(needs, key=lambda key: needs[key])
    if needs[least] > available:
        raise ValueError(
            f"no case fits into memory: {least}: needs {text(needs[least], 'size')}, "
            f"{text(available, 'size')} are available"
        )


def _runs_at_moe(suite: Suite, refused: str) -> bool:
    """Whether the MoE layer of the suite's model is executed where another level is not."""
    return refused != "moe" and not unsupported(suite.model, "moe")
