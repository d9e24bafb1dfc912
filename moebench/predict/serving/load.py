"""A served load in steady state: so many requests in flight, each with a prompt and an output.

A closed loop keeps its concurrency: a request that ends is followed by the next. While a sequence
writes its output, every other sequence in flight is replaced once, and its prefill holds up the
decodes. So a token takes a decode step and its share of these prefills,
t_decode(C, input + output / 2) + (C - 1) t_prefill(input) / output. What does not fit into the KV
cache waits.

Benchmarks send rounds of requests whose first starts at once, so that their mean time to first
token holds the queue of that start: see `ROUNDS`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from moebench.predict.arrays import Floats, Ints, OverCases
from moebench.predict.layers.memory import cache_memory
from moebench.predict.serving.deployment import Deployment
from moebench.predict.serving.engine import Engine, StepWork, shipped_engines
from moebench.predict.serving.memory import rank_memory, stage_share
from moebench.predict.serving.prices import KernelPrices
from moebench.predict.serving.step import StepPrice, Steps, step_price
from moebench.predict.serving.work import engine_for
from moebench.routers.policy import Policy
from moebench.spec.case import OperatingPoint
from moebench.spec.schema import MOST_SIZE
from moebench.units import Bytes

Quantity = Literal["tpot", "ttft"]
"""Time per output token, time to first token."""
ROUNDS = 10
"""Requests for each place of a benchmark's concurrency.

**Source**: InferenceMAX, `--num-prompts $((CONC * 10))`."""
QUEUE = 1.14
"""Mean wait at the start over half of all prompts' prefills: the decodes between them included.
From a simulation of the loop, which gives 1.09 to 1.16 with 4 to 256 requests."""
STALLED = 0.95
"""Share of other sequences' prefills that fall into a sequence's decode, the others into its wait;
from the same simulation."""
LEAST_PREFILL = 0.3
"""Share of a prefill's time that it takes at least when it shares a step with decodes."""
CACHE_SHARE = 0.95
"""Share of memory that engines fill: vllm's `gpu_memory_utilization` is 0.9 to 0.95."""
RESERVED = 2e9
"""Bytes of the context, of graphs and of libraries on a GPU."""
CHUNKS: Mapping[str, int] = {"vllm": 8192, "sglang": 8192, "trtllm": 8192}
"""Tokens that an engine prefills in a step at most.

**Source**: vllm, `max_num_batched_tokens` of its server on H100 and later; sglang,
`--chunked-prefill-size`; TensorRT-LLM, `max_num_tokens`."""


@dataclass(frozen=True)
class Load(OverCases):
    """Closed loops; arrays over cases."""

    concurrency: Ints
    """Requests in flight over all devices, the waiting ones included."""
    input: Ints
    """Tokens of a prompt."""
    output: Ints
    """Tokens that a request writes."""
    cached: int = 0
    """Tokens of each prompt that are in the cache already."""

    def __post_init__(self) -> None:
        for name in ("concurrency", "input", "output"):
            found = getattr(self, name)
            if len(found) and not 1 <= found.min() <= found.max() <= MOST_SIZE:
                wrong = found.min() if found.min() < 1 else found.max()
                raise ValueError(f"{name}: found {wrong}, expected 1 to {MOST_SIZE}")
        if not 0 <= self.cached < self.input.min(initial=MOST_SIZE):
            raise ValueError(
                f"cached-prefix: found {self.cached}, expected less than the {self.input.min()} "
                "tokens of a prompt"
            )


@dataclass(frozen=True)
class ServedWork(OverCases):
    """What loads ask of an engine; arrays over cases."""

    load: Load
    running: Floats
    """Requests whose caches fit into memory together, at most the concurrency."""
    tokens_per_step: Floats
    """Tokens that a decode step adds to a sequence: more than 1 with drafted ones."""
    decode: StepWork
    """A decode step of the running sequences in the middle of their outputs."""
    prompt: StepWork
    """Prefill of one prompt, or of one chunk of it."""
    chunks: Floats
    """Chunks of a prompt."""
    full: StepWork
    """A step of prefills that fills the engine's budget."""
    prompts: Floats
    """Prompts in it."""


@dataclass(frozen=True)
class Served(OverCases):
    """Served loads; arrays over cases, seconds and tokens a second."""

    load: Load
    running: Floats
    step: Floats
    """A decode step."""
    prefill: Floats
    """Prefill of one prompt, the engine's host time included."""
    time_per_token: Floats
    """Mean time from one token of a sequence to the next."""
    first_token: Floats
    """Mean time to first token over a benchmark's rounds, the common start included."""
    steady_first_token: Floats
    """Median time to first token once the loop is in its steady state."""

    @property
    def request(self) -> Floats:
        """Seconds of a request in the steady state."""
        return self.steady_first_token + (self.load.output - 1) * self.time_per_token

    @property
    def throughput(self) -> Floats:
        """Tokens that all devices write in a second: by Little's law, the concurrency's."""
        return self.load.concurrency * self.load.output / self.request


@dataclass(frozen=True)
class ServedPrice:
    """Served loads of a deployment and what they rest on."""

    deployment: Deployment
    """Deployment of a decode step."""
    engine: Engine
    served: Served
    decode: StepPrice
    """Kernels of the decode steps."""
    cache_room: Bytes
    """Bytes of a GPU that are left to caches; 0: the weights alone do not fit."""

    def interval(self, quantity: Quantity, values: Floats) -> tuple[Floats, Floats]:
        """Ends of the 90 % interval of times per token or to first token."""
        low, high = shipped_engines().bounds[quantity]
        return values * math.exp(low), values * math.exp(high)


def served_time(engine: Engine, work: ServedWork, rounds: float = ROUNDS) -> Served:
    """Times of loads of one engine with one kind of weights.

    Args:
        engine: what prices its steps.
        work: kernels of the loads' steps.
        rounds: requests for each place of the concurrency; infinite: the steady state alone.
    """
    load = work.load
    waiting = load.concurrency - work.running
    step = engine.decode(work.decode) / work.tokens_per_step
    chunk = engine.prefill(work.prompt)
    prefill = work.chunks * chunk
    full = engine.prefill(work.full) / work.prompts
    shared = np.minimum(engine.read_once(work.decode), (1 - LEAST_PREFILL) * chunk)
    stall = STALLED * np.maximum(work.running - 1, 0) * work.chunks * (chunk - shared) / load.output
    time_per_token = step + stall
    # A new request finds a step in the middle, and its own prefill shares steps with decodes.
    p, decode = engine.parameters, engine.decode(work.decode)
    busy = np.minimum(1.0, work.running - 1)
    beside = (work.chunks - 1) * (decode * busy if engine.mixes else 0.0)
    steady = p.request + busy * engine.admission(load.concurrency) * decode + prefill + beside
    cycle = load.output * time_per_token + prefill
    steady = steady + waiting / work.running * cycle
    start = QUEUE * load.concurrency / (2 * rounds) * full * busy
    return Served(load, work.running, step, prefill, time_per_token, steady + start, steady)


def served(
    deployment: Deployment,
    prices: KernelPrices,
    routing: tuple[Policy, OperatingPoint],
    load: Load,
    chunk: int | None = None,
) -> ServedPrice:
    """Price of loads on a deployment of level "model".

    Args:
        deployment: in phase decode; a cached prefix is that of `prefill_of`.
        prices: of its kernels.
        routing: router, and how it routes.
        load: closed loops.
        chunk: tokens that a step prefills at most; None: the engine's own.
    """
    if chunk is not None and not 1 <= chunk <= MOST_SIZE:
        raise ValueError(f"prefill-chunk: found {chunk}, expected 1 to {MOST_SIZE} tokens")
    engine = engine_for(deployment)
    budget = chunk or CHUNKS.get(engine.name, CHUNKS["vllm"])
    work, decode = served_work(deployment, prices, routing, load, budget)
    room = cache_room(deployment, routing[0])
    return ServedPrice(deployment, engine, served_time(engine, work), decode, room)


def served_work(
    deployment: Deployment,
    prices: KernelPrices,
    routing: tuple[Policy, OperatingPoint],
    load: Load,
    budget: int,
) -> tuple[ServedWork, StepPrice]:
    """What loads ask of an engine that prefills at most `budget` tokens a step."""
    d = deployment
    running = running_requests(d, routing[0], load)
    middle = np.maximum(1, load.input + load.output // 2)
    decode = step_price(d, prices, *routing, Steps(running.astype(np.int64), middle))
    most = int(load.input.max())
    fill = replace(d, phase="prefill", draft=None, context=most, cached_prefix=load.cached)
    one, new = np.ones(len(load), dtype=np.int64), load.input - load.cached
    chunks = -(-new // budget)
    prompts = np.maximum(1, budget // new) * d.parallel.replicas
    parts = load.cached - (-new // chunks)
    steps = Steps(
        np.concatenate([one, one, prompts]), np.concatenate([parts, load.input, load.input])
    )
    fills = step_price(fill, prices, *routing, steps).work
    n = len(load)
    prompt, whole, full = fills[:n], fills[n : 2 * n], fills[2 * n :]
    # A chunk attends to all before it: the prompt's attention is that of the whole.
    prompt = replace(prompt, attention=whole.attention / chunks)
    work = ServedWork(
        load,
        running,
        np.full(n, d.tokens_per_step),
        decode.work,
        prompt,
        chunks.astype(float),
        full,
        prompts.astype(float),
    )
    return work, decode


def running_requests(deployment: Deployment, router: Policy, load: Load) -> Floats:
    """Requests of each load whose caches fit beside the weights, at most the concurrency.

    A cache is counted in the middle of its output. At least one runs on every replica, even where
    the weights alone do not fit, which `memory` says.
    """
    d, running = deployment, []
    replicas = d.parallel.replicas
    free = cache_room(d, router)
    lengths = (load.input + load.output // 2).tolist()
    sizes = {length: cache_of(d, length) for length in set(lengths)}
    for concurrency, length in zip(load.concurrency.tolist(), lengths, strict=True):
        most = replicas * max(1, math.floor(free / sizes[length])) if sizes[length] else concurrency
        running.append(float(min(concurrency, max(most, 1))))
    return np.array(running)


def cache_room(deployment: Deployment, router: Policy) -> Bytes:
    """Bytes of a rank that are left to the KV cache."""
    d = replace(deployment, context=1)
    load = router.load(d.model, 1, d.routed_by(router))
    held = rank_memory(d, router, load, 0.0, 1)
    return max(0.0, CACHE_SHARE * d.hardware.memory_capacity - held["weights"] - RESERVED)


def cache_of(deployment: Deployment, length: int) -> Bytes:
    """Bytes of one sequence of so many tokens in a rank's KV cache."""
    d = replace(deployment, context=length)
    work, a, share = d.workload(1), d.rank.attention, stage_share(d)
    windowed = share * d.windowed_layers
    whole = (share * d.layers - windowed) * cache_memory(d.rank, work, 0, d.cache_dtype)
    return whole + windowed * cache_memory(d.rank, work, a.window, d.cache_dtype)
