"""The launcher's own arguments, bound and compiled by Triton for a GPU that is not here: as JSON.

A program of its own, as `interpreted.py`. Triton is given a driver that names a target and launches
nothing; fp16, since bf16 on the CPU would be multiplied in fp32. Numbers are not looked at.
"""

import json
import sys
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from experts import interpreted

from moebench.experts.backends import load_backend
from moebench.experts.gpu import launch
from moebench.experts.weights import ExpertWeights, Residual
from moebench.routers.routing import Routing

SHAPE = interpreted.Shape(128, 64, num_experts=20)
TOKENS = (1, 2, 3, 16, 17, 600, 3000)
"""Five steps of decode, which have as many row tiles as tokens, and two of prefill."""


def compiled(capability: int) -> list[tuple[str, int, bool]]:
    """Kernels that steps of different lengths compile: name, rows, and whether they start early."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    found: dict[Any, tuple[str, int, bool]] = {}
    run = JITFunction.run

    def warm_up(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        rows = kwargs.get("BLOCK_M", 0)
        found[kernel.hash] = self.__name__, rows, kernel.metadata.launch_pdl
        return kernel

    driver.set_active(
        SimpleNamespace(
            get_current_device=lambda: capability,
            get_current_stream=lambda device: 0,
            get_current_target=lambda: GPUTarget("cuda", capability, 32),
        )
    )
    starts_early = capability >= 90
    options = {"PDL": True, "launch_pdl": True} if starts_early else {"PDL": False}
    weights = ExpertWeights(interpreted.model(SHAPE), torch.float16)
    with (
        torch.no_grad(),
        mock.patch.object(JITFunction, "run", warm_up),
        mock.patch.object(launch, "INTERPRETED_CAPABILITY", capability),
        mock.patch.object(launch, "_dependent", lambda x: options),
        mock.patch("moebench.experts.triton.missing", lambda device: None),
    ):
        experts = load_backend("triton")
        for tokens in TOKENS:
            chosen = torch.zeros(tokens, 1, dtype=torch.int64)
            routing = Routing.from_slots(torch.rand(tokens, 1), chosen, SHAPE.num_experts)
            x = torch.zeros(tokens, SHAPE.hidden, dtype=torch.float16)
            experts(x, routing, weights, Residual(x, 0.5))  # type: ignore[call-arg]
    return sorted(found.values())


if __name__ == "__main__":
    json.dump({capability: compiled(capability) for capability in (80, 90, 100)}, sys.stdout)
