"""The contract step: the expert kernels against the loop over experts in fp64.

The same cases run on an imitation of a GPU through Triton's interpreter, fewer of them.
"""

import os
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from moebench.doctor.first_run.cases import (
    CASES,
    KernelCase,
    case_model,
    kernel_inputs,
    layer_gradients,
    relative_error,
)
from moebench.doctor.first_run.checks import Mark
from moebench.doctor.first_run.step_run import StepRun
from moebench.experts.backends import execution, why_not
from moebench.experts.weights import Experts
from moebench.measure.devices import make_current
from moebench.measure.graph import LEAST_RING, capture
from moebench.model.decoder import StepMode, build_decoder
from moebench.routers.gpu.launch import by_torch
from moebench.routers.policy import policy
from moebench.routers.routing import build_routers
from moebench.spec.model import ModelSpec

LAYERS = 2
BACKEND, INTERPRET = "triton", "TRITON_INTERPRET"
TOLERANCES = {"bfloat16": 8e-3, "float32": 1e-6}
"""Largest norm of the error over that of the result: what is rounded is the hidden rows and the
result, each to 8 bits in bf16."""
GRADIENTS = {"bfloat16": 2e-2, "float32": 1e-5}
"""Largest error of gradients, behind which lie four products in place of two."""
ROUTERS: dict[str, dict[str, Any]] = {
    "top-k": {},
    "ada-k": {"mean_k": 1.5},
    "adamoe": {"mean_k": 1.5},
    "rmoe": {},
}
IMITATED_CASE = replace(CASES[1], experts=4, hidden=72, inner=48, tokens=5)
IMITATED_ROUTER, IMITATED_LAYERS, IMITATED_GRADIENTS = "ada-k", 1, ("float32",)
"""What Triton's interpreter computes in some seconds."""
TRUNCATION = 2
"""Factor on the errors in bf16: Triton's interpreter cuts bits off where a GPU rounds."""
RESERVE = 15.0
"""Seconds of the step that a case may take whose kernels are compiled anew."""


def check(run: StepRun) -> None:
    """Check both types, graphs of all routers, and gradients."""
    device = torch.device(run.device)
    make_current(device)
    why = why_not(BACKEND, device)
    if why is None and run.is_imitated and not _can_interpret():
        why = "Triton is not here to interpret the kernels for an imitation of a GPU"
    if why is not None:
        for topic in (*TOLERANCES, "graph", "gradients"):
            run.miss(topic, f"{BACKEND}: {topic}", why)
        return
    experts = execution(BACKEND)
    cases = (IMITATED_CASE,) if run.is_imitated else CASES
    routers = (IMITATED_ROUTER,) if run.is_imitated else tuple(ROUTERS)
    for name in TOLERANCES:
        _forward(run, experts, cases, name)
    for name in routers:
        try:
            _graph(run, name, case_model(cases[0]))
        except Exception as error:  # a kernel that fails must not hide the other routers
            run.fail("graph", f"{name}: a captured step", error)
    for name in IMITATED_GRADIENTS if run.is_imitated else GRADIENTS:
        try:
            _gradients(run, experts, IMITATED_CASE if run.is_imitated else CASES[1], name)
        except Exception as error:
            run.fail("gradients", f"{name}: gradients", error)


def _can_interpret() -> bool:
    """Whether Triton computes the kernels on the processor in this process."""
    return os.environ.get(INTERPRET) == "1" and find_spec("triton") is not None


def _forward(run: StepRun, experts: Experts, cases: tuple[KernelCase, ...], name: str) -> None:
    """The worst error of all cases in a type, and whether idle tokens got exact zeros."""
    device, dtype = torch.device(run.device), getattr(torch, name)
    errors: dict[str, float] = {}
    are_idle_zero = True
    for case in cases:
        if run.left < RESERVE:
            run.miss(name, f"{name}, {case.name}", "the step's time was used up")
            continue
        try:
            inputs = kernel_inputs(case, dtype, device)
            _leave_nan(device, inputs.routing.num_assignments * max(case.hidden, case.inner))
            with torch.inference_mode():
                y = experts(inputs.x, inputs.routing, inputs.weights).cpu()
            errors[case.name] = relative_error(y, inputs.exact)
            are_idle_zero &= bool((y[inputs.is_idle] == 0).all())
        except Exception as error:
            run.fail(name, f"{name}, {case.name}", error)
    run.record("contract", dtype=name, errors=errors)
    if errors:
        worst = _worst(errors)
        mark = _rounding(run, name, TOLERANCES[name])
        what = f"{name}: error of {len(errors)} cases, the worst is '{worst}'"
        run.judge(name, what, errors[worst], mark)
        zeros = Mark("the definition", wanted="exact zeros")
        seen = "exact zeros" if are_idle_zero else "something else"
        run.state(name, f"{name}: tokens without experts get", seen, are_idle_zero, zeros)


def _rounding(run: StepRun, name: str, tolerance: float) -> Mark:
    """The largest relative error that is rounding, on a GPU or in Triton's interpreter."""
    if run.is_imitated and name == "bfloat16":
        return Mark(
            "rounding of the type, twice for the interpreter", at_most=TRUNCATION * tolerance
        )
    return Mark("rounding of the type", at_most=tolerance)


def _leave_nan(device: torch.device, elements: int) -> None:
    """Fill memory with NaN and free it, so that uninitialised rows hold NaN."""
    torch.full((4 * elements + 1,), float("nan"), device=device)


def _graph(run: StepRun, name: str, model: ModelSpec) -> None:
    """Steps replayed from one CUDA graph against eager steps of the slow execution, in fp32."""
    device, own = torch.device(run.device), policy(name, ROUTERS[name])
    layers = IMITATED_LAYERS if run.is_imitated else LAYERS
    torch.manual_seed(0)
    with torch.device(device):
        routers = [r.eval() for r in build_routers(own, model, layers, torch.float32)]
    decoder = build_decoder(model, layers, torch.float32, device)

    def step(x: Tensor, backend: str, bounded: bool = False) -> Tensor:
        y: Tensor = decoder(x, routers, execution(backend), StepMode("moe", bounded=bounded))[0]
        return y

    ring = torch.randn(LEAST_RING, 7, 1, model.hidden_size, device=device)
    with torch.inference_mode():
        graph = capture(lambda x: step(x, BACKEND, bounded=True), lambda x: step(x, BACKEND), ring)
        found = [graph.replay(x).cpu() for x in ring[-3:]]
        # Routed by torch: the routing kernel is checked too.
        with by_torch():
            errors = [
                relative_error(y, step(x, "loop").cpu())
                for x, y in zip(ring[-3:], found, strict=True)
            ]
    mark = Mark("fp32, on inputs that it was not captured on", at_most=1e-5)
    run.judge("graph", f"{name}: error of replayed steps against 'loop'", max(errors), mark)


def _gradients(run: StepRun, experts: Experts, case: KernelCase, name: str) -> None:
    """Gradients of x, of the routing weights and of both matrices against 'loop' in fp64."""
    inputs = kernel_inputs(case, getattr(torch, name), torch.device(run.device))
    routing = inputs.plain
    found = layer_gradients(experts, inputs.x, routing, inputs.weights)
    in_fp64 = replace(routing, weights=routing.weights.double())
    exact = layer_gradients(
        execution("loop"), inputs.x.double(), in_fp64, deepcopy(inputs.weights).double()
    )
    errors = {what: relative_error(mine, exact[what]) for what, mine in found.items()}
    run.record("gradients", dtype=name, errors=errors)
    worst = _worst(errors)
    mark = _rounding(run, name, GRADIENTS[name])
    run.judge("gradients", f"{name}: error of gradients, worst of {worst}", errors[worst], mark)


def _worst(errors: Mapping[str, float]) -> str:
    """The name of the largest error; NaN is larger than any."""
    return max(errors, key=lambda name: (errors[name] != errors[name], errors[name]))
