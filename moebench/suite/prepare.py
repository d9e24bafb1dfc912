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
from moebench.routers.operating_point import k_histogram, lag1_correlation, step_loads
from moebench.routers.routing import Router, RouterState, Routing, build_routers
from moebench.spec.case import OperatingPoint
from moebench.suite.cell import Bench, ReadyCase, ReadyCell
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
    cases = []
    errors: dict[str, Exception] = {}
    for case, policy in zip(cell.cases, cell.policies, strict=True):
        try:
            with torch.device(bench.device), torch.random.fork_rng(devices=[]):
                torch.manual_seed(workload.seed)
                built = build_routers(policy, bench.model, bench.num_layers, bench.dtype)
            routers: list[Router] = []
            loads, histograms, lag1 = [], [], None
            for router in built:
                # Only the first layer sees the same input whatever the router.
                inputs, state = _router_inputs(ready, routers) if routers else first_inputs
                routing = _imposed(router, case.operating_point, inputs, state)
                loads.append(step_loads(routing, num_steps).cpu().numpy())
                histograms.append(k_histogram(routing))
                lag1 = lag1 if routers else lag1_correlation(routing)
                routers.append(router)
            for router in routers:
                router.train(workload.phase == "train")
            shares = [*zip(*zip_longest(*histograms, fillvalue=0.0), strict=True)]
            histogram = tuple(np.mean(shares, axis=0).tolist())
            cases.append(ReadyCase(case, policy, tuple(routers), np.stack(loads), histogram, lag1))
        except Exception as error:
            errors[case.key] = without_frames(error)
    return replace(ready, cases=tuple(cases), errors=errors)


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


@torch.inference_mode()
def _imposed(router: Router, point: OperatingPoint, inputs: Tensor, state: RouterState) -> Routing:
    """Bring a router to its operating point over a stream, and route the stream."""
    scores, _ = router.eval().scores(inputs, state)
    router.impose(scores, point)
    return router.route(scores)


@torch.inference_mode()
def _router_inputs(cell: ReadyCell, routers_below: Sequence[Router]) -> tuple[Tensor, RouterState]:
    """The next router's input over the whole stream [tokens, hidden], and the state it gets.

    Decode steps of few sequences are put side by side, against copies of the same cache: a token's
    input stays the same, and four thousand steps become a few dozen.
    """
    x, cache, workload = cell.stream, cell.cache, cell.workload
    if workload.phase == "decode" and workload.batch < WIDE_BATCH:
        copies = math.gcd(cell.num_steps, WIDE_BATCH // workload.batch)
        x = x.view(-1, copies * workload.batch, 1, x.shape[-1])
        cache = None if cache is None else repeated(cache, copies)
    mode = StepMode(workload.level, cache)
    inputs, states = [], []
    for step in x:
        router_input, state = cell.bench.decoder.router_input(
            step, routers_below, cell.experts, mode
        )
        inputs.append(router_input)
        states.append(state)
    known = [state for state in states if state is not None]
    return torch.cat(inputs), torch.cat(known) if known else None


def repeated(cache: KVCache, copies: int) -> KVCache:
    """A cache with every sequence `copies` times."""
    wide = copy(cache)
    wide.keys, wide.values = (t.repeat(1, copies, 1, 1, 1) for t in (cache.keys, cache.values))
    return wide
