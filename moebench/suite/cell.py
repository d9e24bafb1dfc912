"""One cell, executed: shared weights, one stream of tokens, every router at its operating point.

All cases of a cell see the same steps in the same order. The order is chosen so that every
stretch of it has the mean k of the whole stream: at batch 1 a few dozen steps are timed out of
thousands, and without that a router's luck would pass for its speed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moebench.experts.backends import layout_builder, load_backend
from moebench.experts.catalogue import EXPERT_BACKENDS
from moebench.experts.weights import Experts
from moebench.measure.graph import LEAST_RING, CaptureError, Graph, capture
from moebench.measure.latency import Visit
from moebench.model.attention import KVCache
from moebench.model.decoder import Decoder, Mark, StepMode, no_mark, training_loss
from moebench.model.random_numbers import fill_normal
from moebench.records.results import Caveat
from moebench.routers.operating_point import k_histogram, lag1_correlation, step_loads
from moebench.routers.policy import Policy
from moebench.routers.routing import Router, RouterState, Routing, build_routers
from moebench.spec.case import Case, OperatingPoint, Workload
from moebench.spec.load import ExpertLoad
from moebench.spec.model import ModelSpec
from moebench.suite.plan import Cell
from moebench.units import Bytes

WIDE_BATCH = 128
"""Sequences that are put side by side where a stream is only looked at, not timed."""
ORDER_CANDIDATES = 32
UNEXPLAINED = 0.05
"""Relative difference between expected and observed distinct experts that is worth a caveat."""


class NotANumber(ValueError):
    """A step's output holds NaN or infinity."""


@dataclass(frozen=True, eq=False)
class Bench:
    """What all cells of a run share."""

    model: ModelSpec
    decoder: Decoder
    device: torch.device
    dtype: torch.dtype

    @property
    def num_layers(self) -> int:
        return len(self.decoder.layers)

    def lay_out(self, backend: str) -> None:
        """Make the copy of the experts' weights that a backend wants, and free all others."""
        build = layout_builder(backend)
        for weights in self.decoder.expert_weights():
            weights.drop_layouts(keep=backend)
            if build is not None:
                build(weights)


@dataclass(frozen=True, eq=False)
class ReadyCase:
    """A case whose routers are at its operating point, and what they do with the stream."""

    case: Case
    policy: Policy
    routers: tuple[Router, ...]
    tokens_per_expert: NDArray[np.int64]
    """[layers, steps, experts]"""
    k_histogram: tuple[float, ...]
    """Share of tokens with 0, 1, 2, ... experts, mean over the layers."""
    lag1_correlation: float | None
    """Of the first layer."""

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
    """[steps, batch, sequence, hidden]"""
    cache: KVCache | None
    experts: Experts
    errors: Mapping[str, Exception]
    """Why a case, by key, is not among `cases`."""
    graphs: Mapping[str, Graph] = field(default_factory=dict)
    """Of every case that runs, by key, once they are captured; empty where steps are eager."""
    not_captured: str | None = None
    """Why there are no graphs where there should be."""

    @property
    def workload(self) -> Workload:
        return self.cell.workload

    @property
    def num_steps(self) -> int:
        return int(self.stream.shape[0])

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """The steps in the order in which they are timed."""
        assignments = np.stack([c.tokens_per_expert.sum(axis=(0, 2)) for c in self.cases])
        return balanced_order(assignments.astype(float), self.workload.seed)

    def step(self, ready: ReadyCase, place: int, mark: Mark = no_mark) -> Tensor:
        """Run one step of a case: the `place`-th of the order, which is cyclic."""
        x = self.stream[self.order[place % self.num_steps]]
        if ready.case.key in self.graphs:
            return self.graphs[ready.case.key].replay(x)
        if self.workload.phase != "train":
            return self.infer(ready, x, self.mode(mark))
        y, routings = self._forward(ready, x, self.mode(mark))
        training_loss(y, routings, x).backward()  # type: ignore[no-untyped-call]
        mark("backward")
        return y.detach()

    def mode(self, mark: Mark = no_mark, bounded: bool = False) -> StepMode:
        """How the steps of this cell run."""
        return StepMode(self.workload.level, self.cache, mark, bounded)

    def infer(self, ready: ReadyCase, x: Tensor, mode: StepMode) -> Tensor:
        """An eager step of inference."""
        with torch.inference_mode():
            y, _ = self._forward(ready, x, mode)
        return y

    def _forward(self, ready: ReadyCase, x: Tensor, mode: StepMode) -> tuple[Tensor, list[Routing]]:
        result: tuple[Tensor, list[Routing]] = self.bench.decoder(
            x, ready.routers, self.experts, mode
        )
        return result

    def discard_gradients(self, ready: ReadyCase) -> None:
        """Free the gradients of the last training step; nothing to do in inference."""
        if self.workload.phase != "train":
            return
        self.bench.decoder.zero_grad(set_to_none=True)
        for router in ready.routers:
            router.zero_grad(set_to_none=True)

    def visit(self, ready: ReadyCase) -> Visit:
        """The case as the instruments take it."""

        def run(first_step: int, num_steps: int) -> None:
            for place in range(first_step, first_step + num_steps):
                self.step(ready, place)
                self.discard_gradients(ready)

        return run

    def check(self, y: Tensor) -> None:
        """Look at a step's output.

        Raises:
            NotANumber: it is not finite.
        """
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

    def caveats(self, ready: ReadyCase, cache_bytes: Bytes) -> tuple[Caveat, ...]:
        """What should be known about this case's numbers before any is taken.

        Args:
            ready: the case.
            cache_bytes: the machine's last-level cache.
        """
        load = ready.load(self.workload.num_tokens)
        found = [*self.cell.caveats]
        active = self.active_weight_bytes(load)
        if active < 4 * cache_bytes:
            found.append(
                Caveat(
                    "warm-cache",
                    f"a step reads {active / 2**20:.0f} MiB of weights; the last-level cache has "
                    f"{cache_bytes / 2**20:.0f} MiB",
                    "weights stay in the cache between steps, which other layers of a model would "
                    "push out: latencies are warm",
                    "run more layers (--layers) or true-size shapes",
                )
            )
        if self.not_captured is not None:
            found.append(
                Caveat(
                    "not-captured",
                    f"no CUDA graph: {self.not_captured}",
                    "all routers of this workload were launched eagerly, while the prediction "
                    "is of a graph",
                    "run and compare with --eager",
                )
            )
        is_decode = self.workload.phase == "decode"
        if self.bench.device.type == "cuda" and is_decode and not self.graphs:
            found.append(
                Caveat(
                    "host-sync",
                    f"{_waiting(ready.case.backend)} for the device",
                    "the device waits for the host once a layer, which a short decode step feels",
                    "read decode speedups as those of eager launches",
                )
            )
        expected = ready.policy.load(
            self.bench.model, self.workload.num_tokens, ready.case.operating_point
        ).distinct_experts
        if expected and abs(load.distinct_experts / expected - 1) > UNEXPLAINED:
            found.append(
                Caveat(
                    "distinct-experts",
                    f"{load.distinct_experts:.2f} distinct experts a step, "
                    f"{expected:.2f} expected for independent tokens",
                    "tokens of a step agree in their experts, or avoid each other's",
                    "read the speedup at this batch as one of this stream",
                )
            )
        return tuple(found)

    def active_weight_bytes(self, load: ExpertLoad) -> Bytes:
        """Weights that one step reads in all layers."""
        decoder, model = self.bench.decoder, self.bench.model
        size = torch.empty(0, dtype=self.bench.dtype).element_size()
        unread = (model.num_experts - load.distinct_experts) * model.expert_parameters
        total = decoder.weight_bytes(self.workload.level)
        return total - self.bench.num_layers * unread * size


def prepare_cell(bench: Bench, cell: Cell, stream_tokens: int) -> ReadyCell:
    """Draw the stream, fill the cache, and bring every router to its operating point.

    Args:
        bench: model, weights and device.
        cell: what to prepare.
        stream_tokens: distinct tokens at least; a whole number of steps is drawn.

    A case that fails here, such as one whose operating point cannot be reached over this stream,
    is left out and its error kept.
    """
    workload = cell.workload
    fewest = LEAST_RING if cell.baseline.launch == "graph" else 1
    num_steps = max(fewest, -(-stream_tokens // workload.num_tokens))
    shape = (num_steps, workload.batch, workload.sequence_length, bench.model.hidden_size)
    stream = torch.empty(shape, dtype=bench.dtype, device=bench.device)
    fill_normal(stream, 0.0, 1.0, (workload.seed, 1))
    cache = _cache(bench, workload, workload.batch)
    experts = load_backend(cell.baseline.backend, bench.device)
    first_inputs = _router_inputs(bench, workload, stream, cache, (), experts)
    cases = []
    errors: dict[str, Exception] = {}
    for case, policy in zip(cell.cases, cell.policies, strict=True):
        try:
            routers: list[Router] = []
            loads, histograms, lag1 = [], [], None
            for router in _build_routers(bench, policy, workload.seed):
                # Only the first layer sees the same input whatever the router.
                inputs, state = (
                    _router_inputs(bench, workload, stream, cache, routers, experts)
                    if routers
                    else first_inputs
                )
                routing = _imposed(router, case.operating_point, inputs, state)
                loads.append(step_loads(routing, num_steps).cpu().numpy())
                histograms.append(k_histogram(routing))
                lag1 = lag1 if routers else lag1_correlation(routing)
                routers.append(router)
            for router in routers:
                router.train(workload.phase == "train")
        except Exception as error:
            errors[case.key] = error
            continue
        cases.append(
            ReadyCase(
                case, policy, tuple(routers), np.stack(loads), _mean_histogram(histograms), lag1
            )
        )
    return ReadyCell(bench, cell, tuple(cases), stream, cache, experts, errors)


def captured(cell: ReadyCell, cases: Sequence[ReadyCase]) -> ReadyCell:
    """The cell with a CUDA graph for each of the cases that run, or with the reason for none.

    A ratio compares equal launches: where one case cannot be captured, none is.
    """
    graphs = {}
    for ready in cases:
        eager = partial(cell.infer, ready, mode=cell.mode())
        bounded = partial(cell.infer, ready, mode=cell.mode(bounded=True))
        try:
            graphs[ready.case.key] = capture(bounded, eager, cell.stream)
        except CaptureError as error:
            return replace(cell, not_captured=f"{ready.case.router.title} {error}")
    return replace(cell, graphs=graphs)


def _build_routers(bench: Bench, policy: Policy, seed: int) -> list[Router]:
    with torch.device(bench.device), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_routers(policy, bench.model, bench.num_layers, bench.dtype)


@torch.inference_mode()
def _imposed(router: Router, point: OperatingPoint, inputs: Tensor, state: RouterState) -> Routing:
    """Bring a router to its operating point over a stream, and route the stream."""
    scores, _ = router.eval().scores(inputs, state)
    router.impose(scores, point)
    return router.route(scores)


def _cache(bench: Bench, workload: Workload, batch: int) -> KVCache | None:
    """The KV cache of the workload's decoder level, filled where there is a context."""
    if workload.level == "moe" or workload.phase == "train":
        return None
    capacity = workload.context_length + workload.sequence_length
    shape = (bench.num_layers, batch, capacity)
    cache = KVCache(bench.model.attention, shape, bench.dtype, bench.device)
    cache.fill_random(workload.context_length, workload.seed)
    return cache


@torch.inference_mode()
def _router_inputs(
    bench: Bench,
    workload: Workload,
    stream: Tensor,
    cache: KVCache | None,
    routers_below: Sequence[Router],
    experts: Experts,
) -> tuple[Tensor, RouterState]:
    """What the next router sees of the whole stream [tokens, hidden], and the state it gets.

    Decode steps of few sequences are put side by side, against copies of the same cache: what a
    token sees stays the same, and four thousand steps become a few dozen.
    """
    x = stream
    if workload.phase == "decode" and workload.batch < WIDE_BATCH:
        copies = math.gcd(stream.shape[0], WIDE_BATCH // workload.batch)
        x = stream.view(-1, copies * workload.batch, 1, stream.shape[-1])
        cache = None if cache is None else repeated(cache, copies)
    mode = StepMode(workload.level, cache)
    inputs, states = [], []
    for step in x:
        found, state = bench.decoder.router_input(step, routers_below, experts, mode)
        inputs.append(found)
        states.append(state)
    known = [state for state in states if state is not None]
    return torch.cat(inputs), torch.cat(known) if known else None


def repeated(cache: KVCache, copies: int) -> KVCache:
    """A cache with every sequence `copies` times."""
    wide = object.__new__(KVCache)
    wide.keys = cache.keys.repeat(1, copies, 1, 1, 1)
    wide.values = cache.values.repeat(1, copies, 1, 1, 1)
    wide.length = cache.length
    return wide


def _mean_histogram(histograms: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
    longest = max(len(histogram) for histogram in histograms)
    padded = [(*h, *([0.0] * (longest - len(h)))) for h in histograms]
    return tuple(np.mean(padded, axis=0).tolist())


def balanced_order(assignments: NDArray[np.float64], seed: int) -> NDArray[np.int64]:
    """An order of the steps in which every stretch from the start looks like the whole stream.

    Greedy: out of some random candidates the step is taken that keeps the running mean of every
    case's assignments closest to its mean over the stream.

    Args:
        assignments: of each case in each step [cases, steps].
        seed: of the candidates.
    """
    rng = np.random.default_rng(seed)
    num_steps = assignments.shape[1]
    excess = assignments / assignments.mean(axis=1, keepdims=True) - 1.0
    left = rng.permutation(num_steps)
    total = np.zeros(len(assignments))
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


def _waiting(backend: str) -> str:
    """What makes the host wait when a step is launched eagerly."""
    if EXPERT_BACKENDS[backend].is_capturable:
        return "the routing waits"
    return f"the routing and expert backend {backend!r} wait"
