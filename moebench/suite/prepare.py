"""A cell made ready: its stream drawn, its cache filled, every router at its operating point."""

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from itertools import zip_longest

import numpy as np
import torch
from torch import Tensor

from moebench.experts.backends import load_backend
from moebench.measure.graph import LEAST_RING, CaptureError, capture
from moebench.measure.latency import without_frames
from moebench.model.attention import KVCache
from moebench.model.decoder import StepMode
from moebench.model.random_numbers import fill_normal
from moebench.routers.gpu.launch import by_torch
from moebench.routers.operating_point import k_histogram, lag1_correlation, step_loads
from moebench.routers.policy import policy
from moebench.routers.routing import Router, RouterState, Routing
from moebench.spec.carried_point import LEAST_SHARE
from moebench.spec.case import OperatingPoint
from moebench.suite.cell import Bench, ReadyCase, ReadyCell
from moebench.suite.checkpoint import OWN_ROUTER
from moebench.suite.costs import WIDE_BATCH
from moebench.suite.plan import Cell


def prepare_cell(bench: Bench, cell: Cell, stream_tokens: int) -> ReadyCell:
    """Draw the stream, fill the cache, and bring every router to its operating point.

    The stream has a whole number of steps and at least `stream_tokens` distinct tokens. A case that
    fails here is left out, such as one whose operating point cannot be reached over this stream;
    its error is an error of the cell.
    """
    workload = cell.workload
    fewest = LEAST_RING if cell.baseline.launch == "graph" else 1
    num_steps = max(fewest, -(-stream_tokens // workload.num_tokens))
    shape = (num_steps, workload.batch, workload.sequence_length, bench.model.hidden_size)
    stream = torch.empty(shape, dtype=bench.dtype, device=bench.device)
    fill_normal(stream, 0.0, 1.0, (workload.seed, 1))
    cache = None
    if workload.level == "decoder" and workload.phase != "train":
        capacity = workload.context_length + workload.sequence_length
        sizes = (bench.num_layers, workload.batch, capacity)
        cache = KVCache(bench.model.attention, sizes, bench.dtype, bench.device)
        cache.fill_random(workload.context_length, workload.seed)
    experts = load_backend(cell.baseline.backend, bench.device)
    ready = ReadyCell(bench, cell, (), stream, cache, experts, {})
    first_inputs = _router_inputs(ready, ())
    own_shares = _own_shares(ready) if bench.is_free else ()
    cases = []
    errors: dict[str, Exception] = {}
    for case, own in zip(cell.cases, cell.policies, strict=True):
        try:
            built = bench.routers(own, workload.seed)
            routers: list[Router] = []
            loads, histograms, lag1 = [], [], None
            for router in built:
                # Only the first layer sees the same input whatever the router.
                scored = _router_inputs(ready, routers) if routers else first_inputs
                point: OperatingPoint | None = case.operating_point
                if own_shares:
                    point = replace(case.operating_point, expert_shares=own_shares[len(routers)])
                if own_shares and own.name == OWN_ROUTER:
                    point = None
                routing = _routing(router, point, scored, num_steps)
                loads.append(step_loads(routing, num_steps).cpu().numpy())
                histograms.append(k_histogram(routing))
                lag1 = lag1 if routers else lag1_correlation(routing)
                routers.append(router)
            for router in routers:
                router.train(workload.phase == "train")
                if workload.phase != "train":
                    router.requires_grad_(False)
            shares = [*zip(*zip_longest(*histograms, fillvalue=0.0), strict=True)]
            histogram = tuple(np.mean(shares, axis=0).tolist())
            cases.append(ReadyCase(case, own, tuple(routers), np.stack(loads), histogram, lag1))
        except Exception as error:
            errors[case.key] = without_frames(error)
    return replace(ready, cases=tuple(cases), errors=errors)


def captured(cell: ReadyCell, cases: Sequence[ReadyCase]) -> ReadyCell:
    """The cell with a CUDA graph for each of the cases that run, or with the reason for none.

    A ratio compares equal launches: where one case cannot be captured, none is.
    """
    graphs = {}
    for ready in cases:
        bounded = replace(cell.mode(), bounded=True)
        step = partial(cell.infer, ready, mode=bounded)
        # What replays are compared with is routed by torch, and as long as it really is.
        eager = by_torch()(partial(cell.infer, ready, mode=replace(bounded, bounded=False)))
        try:
            graphs[ready.case.key] = capture(step, eager, cell.stream)
        except CaptureError as error:
            return replace(cell, not_captured=f"{ready.case.router.title} {error}")
    return replace(cell, graphs=graphs)


@torch.inference_mode()
def _routing(
    router: Router,
    point: OperatingPoint | None,
    scored: tuple[Tensor, RouterState],
    num_steps: int,
) -> Routing:
    """Bring a router to an operating point over a stream, and route the stream's steps.

    Args:
        router: Routes as it does where there is no point.
        point: What it is brought to.
        scored: Its input and state over the stream.
        num_steps: Steps of the stream.
    """
    scores, _ = router.eval().scores(*scored)
    if point is not None:
        router.impose(scores, point)
    return router.route_steps(scores, num_steps)


@torch.inference_mode()
def _own_shares(cell: ReadyCell) -> tuple[tuple[float, ...], ...]:
    """Shares of each layer's experts over the stream, as the checkpoint's own routers choose."""
    routers = cell.bench.routers(policy(OWN_ROUTER), cell.workload.seed)
    shares = []
    for index, router in enumerate(routers):
        inputs, state = _router_inputs(cell, routers[:index])
        counts = router.eval()(inputs, state)[0].tokens_per_expert.double()
        shares.append(tuple((counts / counts.sum()).clamp(min=LEAST_SHARE).tolist()))
    return tuple(shares)


@torch.inference_mode()
def _router_inputs(cell: ReadyCell, routers_below: Sequence[Router]) -> tuple[Tensor, RouterState]:
    """The next router's input over the whole stream [tokens, hidden], and the state it gets.

    Decode steps of few sequences become one: its sequences get the tokens of many steps, each at
    the next position. A token's input stays the same, and four thousand steps become eight.
    """
    x, cache, workload = cell.stream, cell.cache, cell.workload
    together = 1
    if workload.phase == "decode":
        together = math.gcd(cell.num_steps, max(1, WIDE_BATCH // workload.batch))
    if together > 1:
        x = x.view(-1, together, workload.batch, x.shape[-1]).transpose(1, 2)
        cache = None if cache is None else with_alternatives(cache, together)
    mode = StepMode(workload.level, cache)
    inputs, states = [], []
    for step in x:
        router_input, state = cell.bench.decoder.router_input(
            step, routers_below, cell.experts, mode
        )
        inputs.append(_by_step(router_input, together))
        states += [] if state is None else [_by_step(state, together)]
    return torch.cat(inputs), torch.cat(states) if states else None


def _by_step(tokens: Tensor, together: int) -> Tensor:
    """Tokens of some steps [sequences x steps, width], in the order of the steps."""
    if together == 1:
        return tokens
    return tokens.view(-1, together, tokens.shape[-1]).transpose(0, 1).flatten(0, 1)


def with_alternatives(cache: KVCache, number: int) -> KVCache:
    """A copy of a cache with room for alternatives of each sequence's next position."""
    wide = copy(cache)
    layers, batch, heads, _, head = cache.keys.shape
    room = cache.keys.new_empty((layers, batch, heads, number, head))
    wide.keys, wide.values = (
        torch.cat((past[..., : cache.length, :], room), dim=3)
        for past in (cache.keys, cache.values)
    )
    wide.are_alternatives = True
    return wide
