"""One cell, executed: shared weights, one stream of tokens, every router at its operating point.

All cases of a cell see the same steps in the same order. The order is chosen so that every
stretch of it has the mean k of the whole stream: at batch 1 a few dozen steps are timed out of
thousands, and without that a router's luck would pass for its speed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moebench.experts.backends import layout_builder
from moebench.experts.catalogue import EXPERT_BACKENDS
from moebench.experts.weights import Experts
from moebench.measure.graph import Graph
from moebench.measure.latency import Visit
from moebench.model.attention import KVCache
from moebench.model.decoder import (
    Decoder,
    Mark,
    StepMode,
    build_decoder,
    no_mark,
    training_loss,
)
from moebench.routers.policy import Policy
from moebench.routers.routing import Router, build_routers
from moebench.spec.case import Case, Workload
from moebench.spec.load import ExpertLoad
from moebench.spec.model import ModelSpec, scaled_down
from moebench.suite.checkpoint import CheckpointLayers, take_over
from moebench.suite.plan import Cell
from moebench.units import Bytes

ORDER_CANDIDATES = 256
"""Steps of which the next one is chosen. The mean distinct experts of the first 8 decode steps at
batch 4 are then 1.6 % off the stream's for the worst of five routers (2.7 % with 32 candidates)."""
MOST_NARROW = 16
"""Largest divisor of the widths that are counted: Mixtral's 4096 and 14336 become 256 and 896."""
GRANULE = 8
"""Narrow widths are multiples of this: 16 bytes in bfloat16, which grouped matmuls want."""


class NotANumber(ValueError):
    """A step's output holds NaN or infinity."""


@dataclass(frozen=True, eq=False)
class Bench:
    """Model, weights and device, which all cells of a run share."""

    model: ModelSpec
    decoder: Decoder
    device: torch.device
    dtype: torch.dtype
    checkpoint: CheckpointLayers | None = None
    """Where the decoder's weights come from, and those of the routers; None: they are random."""

    @property
    def num_layers(self) -> int:
        return len(self.decoder.layers)

    @property
    def is_free(self) -> bool:
        """Whether top-k routes as its checkpoint does, and other routers' experts follow it."""
        return self.checkpoint is not None and self.checkpoint.is_free

    def routers(self, policy: Policy, seed: int) -> list[Router]:
        """Routers of all layers; what no checkpoint gives them depends on the seed alone."""
        with torch.device(self.device), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            built = build_routers(policy, self.model, self.num_layers, self.dtype)
        if self.checkpoint is not None:
            for router, gate in zip(built, self.checkpoint.gates, strict=True):
                take_over(router, gate)
        return built

    @cached_property
    def narrow(self) -> "Bench":
        """Narrow layers, as many as the timed ones, for what is counted and not timed."""
        model = scaled_down(self.model, width_divisor(self.model))
        decoder = build_decoder(model, self.num_layers, self.dtype, self.device)
        return Bench(model, decoder, self.device, self.dtype)

    def lay_out(self, backend: str) -> None:
        """Make the copy of the experts' weights that a backend wants, and free all others."""
        build = layout_builder(backend)
        for weights in self.decoder.expert_weights():
            weights.drop_layouts(keep=backend)
            if build is not None:
                build(weights)


@dataclass(frozen=True, eq=False)
class ReadyCase:
    """A case with routers at its operating point, and their loads over the stream."""

    case: Case
    policy: Policy
    routers: tuple[Router, ...]
    tokens_per_expert: NDArray[np.int64]
    """Assignments of each expert [layers, steps, experts]."""
    k_histogram: tuple[float, ...]
    """Share of tokens with 0, 1, 2, ... experts, mean over the layers."""
    lag1_correlation: float | None
    """Correlation of k between consecutive tokens, first layer; None where k does not vary."""

    @property
    def router_bytes(self) -> Bytes:
        """Parameters and buffers of all layers' routers, what they share counted once."""
        module = torch.nn.ModuleList(self.routers)
        return float(sum(t.nbytes for t in (*module.parameters(), *module.buffers())))

    def load(self, num_tokens: int, steps: Sequence[int] | None = None) -> ExpertLoad:
        """Mean load of a layer over some steps, or over all."""
        counts = self.tokens_per_expert
        counts = counts if steps is None else counts[:, np.asarray(steps, dtype=np.int64)]
        return ExpertLoad(
            tuple(counts.mean(axis=(0, 1)).tolist()),
            num_tokens,
            float((counts > 0).sum(axis=2).mean()),
        )


@dataclass(frozen=True, eq=False)
class ReadyCell:
    """A cell that can be timed."""

    bench: Bench
    cell: Cell
    cases: tuple[ReadyCase, ...]
    stream: Tensor
    """Inputs of all steps [steps, batch, sequence, hidden]."""
    cache: KVCache | None
    experts: Experts
    errors: Mapping[str, Exception]
    """Errors by key of the cases that are not among `cases`."""
    graphs: Mapping[str, Graph] = field(default_factory=dict)
    """CUDA graphs by case key, once captured; empty where steps are eager."""
    not_captured: str | None = None
    """Reason for having no graphs where graphs were planned."""

    @property
    def workload(self) -> Workload:
        return self.cell.workload

    @property
    def num_steps(self) -> int:
        return int(self.stream.shape[0])

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """The steps in the order in which they are timed."""
        loads = [ready.tokens_per_expert for ready in self.cases]
        work = [load.sum(axis=(0, 2)) for load in loads]
        work += [(load > 0).sum(axis=(0, 2)) for load in loads]
        return balanced_order(np.stack(work).astype(float), self.workload.seed)

    def step(self, ready: ReadyCase, place: int, mark: Mark = no_mark) -> Tensor:
        """Run one step of a case: the `place`-th of the order, which is cyclic."""
        x = self.stream[self.order[place % self.num_steps]]
        if ready.case.key in self.graphs:
            return self.graphs[ready.case.key].replay(x)
        if self.workload.phase != "train":
            return self.infer(ready, x, self.mode(mark))
        y, routings = self.bench.decoder(x, ready.routers, self.experts, self.mode(mark))
        training_loss(y, routings, x).backward()  # type: ignore[no-untyped-call]
        mark("backward")
        detached: Tensor = y.detach()
        return detached

    def mode(self, mark: Mark = no_mark) -> StepMode:
        """How the steps of this cell run, in a graph and outside of it.

        In decode no routing's length is asked of the device where the experts can do without it. In
        prefill one wait a layer is nothing beside its work, and a bound takes memory: Ada-K's is
        tokens times experts.
        """
        is_decode = self.workload.phase == "decode"
        bounded = is_decode and EXPERT_BACKENDS[self.cell.baseline.backend].is_capturable
        return StepMode(self.workload.level, self.cache, mark, bounded)

    def infer(self, ready: ReadyCase, x: Tensor, mode: StepMode) -> Tensor:
        """Run an eager step of inference."""
        with torch.inference_mode():
            y: Tensor = self.bench.decoder(x, ready.routers, self.experts, mode)[0]
        return y

    def discard_gradients(self, ready: ReadyCase) -> None:
        """Free the gradients of the last training step; nothing to do in inference."""
        if self.workload.phase != "train":
            return
        self.bench.decoder.zero_grad(set_to_none=True)
        for router in ready.routers:
            router.zero_grad(set_to_none=True)

    def visit(self, ready: ReadyCase) -> Visit:
        """The case as a visit that the instruments can time."""

        def run(first_step: int, num_steps: int) -> None:
            for place in range(first_step, first_step + num_steps):
                self.step(ready, place)
                self.discard_gradients(ready)

        return run

    def check(self, y: Tensor) -> None:
        """Refuse a step's output that is not finite by `NotANumber`."""
        bad = int((~torch.isfinite(y)).sum())
        if bad:
            raise NotANumber(f"{bad} of {y.numel()} output elements are NaN or infinite")

    def sgd(self, ready: ReadyCase) -> Callable[[], None]:
        """Plain SGD on every parameter with a gradient, at a rate of 0: weights are shared."""
        parameters = [*self.bench.decoder.parameters()]
        for router in dict.fromkeys(ready.routers):
            parameters += router.parameters()

        def update() -> None:
            with torch.no_grad():
                for parameter in dict.fromkeys(parameters):
                    if parameter.grad is not None:
                        parameter.add_(parameter.grad, alpha=-0.0)

        return update

    def active_weight_bytes(self, load: ExpertLoad) -> Bytes:
        """Bytes of weights that one step reads in all layers."""
        decoder, model = self.bench.decoder, self.bench.model
        size = torch.empty(0, dtype=self.bench.dtype).element_size()
        unread = (model.num_experts - load.distinct_experts) * model.expert_parameters
        total = decoder.weight_bytes(self.workload.level)
        return total - self.bench.num_layers * unread * size


def width_divisor(model: ModelSpec) -> int:
    """The power of two up to `MOST_NARROW` by which all widths of the experts can be divided."""
    widths = (model.hidden_size, model.intermediate_size, model.shared_intermediate_size)
    divisor = MOST_NARROW
    while divisor > 1 and any(width % (divisor * GRANULE) for width in widths):
        divisor //= 2
    return divisor


def balanced_order(work: NDArray[np.float64], seed: int) -> NDArray[np.int64]:
    """An order of the steps in which every stretch from the start looks like the whole stream.

    Greedy: out of some random candidates the step is taken that keeps the running mean of every
    row of `work` [rows, steps] closest to its mean over the stream. Rows are the assignments and
    the distinct experts of every case.
    """
    rng = np.random.default_rng(seed)
    num_steps = work.shape[1]
    excess = work / work.mean(axis=1, keepdims=True) - 1.0
    left = rng.permutation(num_steps)
    total = np.zeros(len(work))
    order = np.empty(num_steps, dtype=np.int64)
    for place in range(num_steps):
        num_left = num_steps - place
        candidates = rng.integers(0, num_left, min(ORDER_CANDIDATES, num_left))
        distance = np.abs(total[:, None] + excess[:, left[candidates]]).max(axis=0)
        chosen = candidates[int(distance.argmin())]
        order[place] = left[chosen]
        total += excess[:, left[chosen]]
        left[chosen] = left[num_left - 1]
    return order
