"""Weights of one shape and the steps of one cell, on which expert backends are timed."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moebench.experts.backends import execution, layout_builder
from moebench.experts.catalogue import EXPERT_BACKENDS
from moebench.experts.weights import Experts, ExpertWeights
from moebench.measure.clocks import clock_for, mean_time
from moebench.measure.devices import make_current
from moebench.measure.memory import available_memory
from moebench.model.random_numbers import fill_normal
from moebench.records.experts_run import (
    GPU_MATMUL_SIZE,
    MATMUL_SIZE,
    READ_BYTES,
    ExpertsCell,
)
from moebench.routers.policy import policy
from moebench.routers.routing import Choice, Router, Routing, build_routers
from moebench.routers.synthetic.draw import draw_slots
from moebench.units import BYTES_PER_ELEMENT, Bytes, Seconds, text

REST: Seconds = 0.004
"""Pause before a visit: threads of the process that ran before may still spin."""
MEMORY_SHARE = 0.9
"""Largest share of free memory that a backend's copy of the weights and a step may take."""


@dataclass(frozen=True, eq=False)
class ExpertStep:
    """Inputs of one step: tokens, and a router's choice as dense slots and as a flat routing."""

    x: Tensor
    choice: Choice
    routing: Routing
    """The flat routing, its dense slots made, for backends that take these."""
    direction: Tensor
    """Gradient of the output."""


class ExpertBench:
    """The weights of one shape, the steps of one cell, and what can be timed on them.

    Args:
        scratch: memory that the largest step of the shape takes, beside weights.
        alone: the backend that has this process to itself; "": any may be timed. If that backend
            makes a copy of the weights, only the copy stays in memory.
    """

    def __init__(
        self, device: str, num_threads: int, scratch: Bytes = 0.0, alone: str = ""
    ) -> None:
        self.device = torch.device(device)
        make_current(self.device)
        self.clock = clock_for(self.device)
        torch.set_num_threads(num_threads)
        self.scratch, self.alone = scratch, alone
        self.weights: ExpertWeights | None = None
        self.built_layouts: set[str] = set()
        self.refusal: Exception | None = None
        self.routers: dict[str, Router] = {}
        self.steps: dict[str, list[ExpertStep]] = {}
        self.probes = _probes(self.device)

    def open(self, plan: ExpertsCell, seed: int, routers: tuple[str, ...]) -> dict[str, list[Any]]:
        """Build weights, routers and steps of a cell; assignments and touched experts by mix."""
        model, dtype = plan.spec(), getattr(torch, plan.dtype)
        if self.weights is None and self.refusal is None:
            with torch.device(self.device):
                self.weights = ExpertWeights(model, dtype)
                torch.manual_seed(seed)
                self.routers = {
                    name: build_routers(policy(name, {}, name), model, 1, dtype)[0].eval()
                    for name in routers
                }
            for index, p in enumerate(self.weights.parameters()):
                fill_normal(p.data, 0.0, p.shape[-1] ** -0.5, (seed, index))
            if self.alone:
                # Only the copy of that backend stays; if it cannot be made, nothing.
                try:
                    self._build_layout(self.alone)
                    self.weights.drop_layouts(keep=self.alone)
                    self.weights.drop_parameters()
                except (MemoryError, RuntimeError, ValueError) as error:
                    self.weights, self.refusal = None, error
        generator = torch.Generator().manual_seed(seed)
        self.steps, loads = {mix: [] for mix in plan.mixes}, {}
        for mix, steps in self.steps.items():
            for _ in range(plan.num_steps):
                drawn = draw_slots(mix, model.top_k, model.num_experts, plan.num_tokens, generator)
                choice = drawn.to(self.device)
                size = (plan.num_tokens, model.hidden_size)
                x, direction = (
                    torch.randn(size, generator=generator).to(self.device, dtype) for _ in "xy"
                )
                routing = Routing.from_slots(*choice)
                routing.slots  # noqa: B018 - made now, not while a backend is timed
                steps.append(ExpertStep(x, choice, routing, direction))
            flat = [step.routing for step in steps]
            loads[mix] = [
                (own.num_assignments, int((own.tokens_per_expert > 0).sum())) for own in flat
            ]
        return loads

    def time(self, what: str, mix: str, phase: str, first: int, num_steps: int) -> Seconds:
        """Seconds a step of a backend, a router ("router NAME") or a limit ("matmul", "read").

        Raises:
            MemoryError: the backend's own copy of the weights does not fit beside what is there.
        """
        if what in self.probes:
            time.sleep(REST)
            return mean_time(self.probes[what], self.clock)
        kind, _, name = what.rpartition(" ")
        if not kind and phase != "train":
            self._build_layout(name)
        experts = None if kind else execution(name)
        steps = self.steps[mix]
        chosen = [steps[(first + i) % len(steps)] for i in range(num_steps)]

        def run(step: ExpertStep) -> None:
            with torch.inference_mode(phase != "train"):
                if experts is None:
                    self.routers[name](step.x)
                else:
                    self._run(name, experts, phase, step)

        def work() -> None:
            for step in chosen:
                run(step)

        if num_steps > 1:
            run(steps[(first - 1) % len(steps)])
        time.sleep(REST)
        return self.clock.time(work) / num_steps

    def _build_layout(self, backend: str) -> None:
        if self.refusal is not None:
            raise self.refusal
        assert self.weights is not None
        build = layout_builder(backend)
        if build is None or backend in self.built_layouts:
            return
        need = float(sum(p.numel() * p.element_size() for p in self.weights.parameters()))
        free = available_memory(self.device)
        if need + self.scratch > MEMORY_SHARE * free:
            raise MemoryError(
                f"a copy of the weights takes {text(need, 'size')} beside "
                f"{text(self.scratch, 'size')} of a step, {text(free, 'size')} are free"
            )
        build(self.weights)
        self.built_layouts.add(backend)

    def _run(self, name: str, experts: Experts, phase: str, step: ExpertStep) -> None:
        """Run a step from the router's slots to the layer's output, sorting included."""
        assert self.weights is not None
        takes_slots = EXPERT_BACKENDS[name].takes_slots
        x = step.x.detach().requires_grad_() if phase == "train" else step.x
        routing = step.routing if takes_slots else Routing.from_slots(*step.choice)
        y = experts(x, routing, self.weights)
        if phase == "train":
            y.backward(step.direction)  # type: ignore[no-untyped-call]
            self.weights.zero_grad(set_to_none=True)


def matmul_size(device: torch.device) -> int:
    """Rows and columns of the matmul that shows the rate of a device."""
    return GPU_MATMUL_SIZE if device.type == "cuda" else MATMUL_SIZE


def _probes(device: torch.device) -> dict[str, Callable[[], Any]]:
    """The machine's limits (`probe_work`): square matmuls, and torch's ways of reading memory."""
    size = matmul_size(device)
    a = torch.randn(size, size, device=device).bfloat16()
    wide = torch.randn(size, size, device=device)
    words = torch.randn(READ_BYTES // 4, device=device)
    half = len(words) // 2
    target = torch.empty_like(words[:half])

    probes: dict[str, Callable[[], Any]] = {
        "matmul bfloat16": lambda: a @ a,
        "matmul float32": lambda: wide @ wide,
        "read sum": lambda: words.sum(),
        "read dot": lambda: torch.dot(words[:half], words[half:]),
        "read copy": lambda: target.copy_(words[:half]),
    }
    return {name: torch.inference_mode()(probe) for name, probe in probes.items()}


def scratch(plan: ExpertsCell) -> Bytes:
    """Memory of a step beside the weights, with a row for every slot in every tensor.

    transformers' grouped_mm, which takes more memory than any other backend, holds them all: the
    gathered rows, both matmuls' results, the activation's two, and the weighted ones.
    """
    model, nobody = plan.spec(), torch.Generator()
    slots = max(
        draw_slots(mix, model.top_k, model.num_experts, 1, nobody).expert_indices.shape[1]
        for mix in plan.mixes
    )
    width = (model.expert_matrices + 1) * model.intermediate_size + 3 * model.hidden_size
    return float(plan.num_tokens * slots * width) * BYTES_PER_ELEMENT[plan.dtype]
