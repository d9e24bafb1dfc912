"""Microbenchmarks: what dense matrix products, memory and single calls cost on this machine.

The input of a calibration. Products are called as experts call them (`linear` with a weight of
shape [outputs, inputs]); weights come from a pool far larger than the last-level cache, so they
are read from memory as those of a large model are. All sizes take turns, so that drift of the
machine hits all of them alike. Data are random: zeros run faster.

Attention is timed as a decode step and as a prefill call it: few queries against keys and values
beyond the last-level cache, and as many queries as keys. Products with weights that were laid out
beforehand are timed too, where oneDNN packs them or our own kernel runs: in the shapes of experts
and for the rows that experts compute.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from moebench.calibrate.products import (
    PACKED_ROWS,
    PACKED_SHAPES,
    ROWS,
    SHAPES,
    STREAMED_ROWS,
    STREAMED_SHAPES,
    PackedPool,
    Pool,
    Products,
    Size,
    StreamedPool,
    Weights,
    layouts,
)
from moebench.measure.clocks import Clock, clock_for
from moebench.measure.environment import describe_machine
from moebench.measure.latency import Progress
from moebench.measure.reference import reference_operation
from moebench.records.timings import MatmulSample, Microbenchmarks
from moebench.spec.ops import Layout
from moebench.units import BYTES_PER_ELEMENT, Bytes, BytesPerSecond, FlopsPerSecond, Seconds

MIN_PASSES, MAX_PASSES = 5, 25
POOL_CACHES = 4
"""The pool of weights is at least this many last-level caches."""
POOL_LIMIT: Bytes = 1.5e9
HEAD = 128
"""Elements of a key and of a value, in attention."""
QUERIES, CONTEXT = 4, 1024
"""Of a decode step: the queries that share a head's keys, and the positions that they attend to."""
HEADS, SEQUENCE = 32, 512
"""Of a prefill."""
SMALL_CALLS, COLD_CALLS = 100, 10
FRESH = 1 << 27
"""Bytes of new memory: more than a C library keeps of what was freed (32 MiB at most in glibc)."""
RECHECK_COST: Seconds = 0.04


@torch.inference_mode()
def microbenchmarks(
    device: torch.device,
    dtype: str = "bfloat16",
    budget: Seconds = 90.0,
    progress: Progress | None = None,
    shapes: Sequence[tuple[int, int]] = SHAPES,
    rows: Sequence[int] = ROWS,
    packed_shapes: Sequence[tuple[int, int]] = PACKED_SHAPES,
    packed_rows: Sequence[int] = PACKED_ROWS,
    streamed_shapes: Sequence[tuple[int, int]] = STREAMED_SHAPES,
    streamed_rows: Sequence[int] = STREAMED_ROWS,
) -> Microbenchmarks:
    """Measure matrix products over sizes, memory bandwidth and the cost of a small call.

    At least `MIN_PASSES` passes over all sizes are made, more while the budget lasts. Memory:
    the pool (at most `POOL_LIMIT` or twice the largest weight), up to 2.5 times as much again
    for each further layout of weights, and the largest product.

    Args:
        device: where to compute.
        dtype: of weights and activations.
        budget: wall time to aim at.
        progress: told after every pass.
        shapes: outputs and inputs of the weights.
        rows: tokens of a product.
        packed_shapes: the same for packed weights, where oneDNN packs.
        packed_rows: tokens of a product with those.
        streamed_shapes: the same for our own kernel, where it runs.
        streamed_rows: tokens of a product with those.
    """
    clock = clock_for(device)
    start = clock.now()
    environment = describe_machine(device)
    cache = (environment.gpu.l2_cache if environment.gpu else environment.cpu.l3_cache) or 32e6
    pool = Pool(_pool_elements(shapes, dtype, cache), device, getattr(torch, dtype))
    sizes = [Size(r, n, k) for n, k in shapes for r in rows]
    laid_out: dict[Layout, Weights] = {}
    timed = layouts(device, dtype)
    # Shapes take turns, so that all others' weights come between two uses of one.
    if "packed" in timed:
        sizes += [Size(r, n, k, "packed") for r in packed_rows for n, k in packed_shapes]
        laid_out["packed"] = PackedPool(pool, packed_shapes)
    if "avx512" in timed:
        sizes += [Size(r, n, k, "avx512") for r in streamed_rows for n, k in streamed_shapes]
        laid_out["avx512"] = StreamedPool(pool, streamed_shapes)
    products = Products(pool, laid_out, sizes)
    repeats = {size: products.repeats(size, clock) for size in sizes}
    times: dict[Size, list[Seconds]] = {size: [] for size in sizes}
    reading: list[BytesPerSecond] = []
    copying: list[BytesPerSecond] = []
    fresh: list[BytesPerSecond] = []
    small: list[Seconds] = []
    streaming: list[BytesPerSecond] = []
    scoring: list[FlopsPerSecond] = []
    referred: list[Seconds] = []
    reference = reference_operation(device)
    reference()
    for number in range(MAX_PASSES):
        pass_start = clock.now()
        for size in sizes:
            times[size].append(products.time(size, repeats[size], clock))
        reading.append(_read_bandwidth(pool, clock))
        copying.append(_copy_bandwidth(pool, clock))
        fresh.append(_fresh_bandwidth(pool.elements, clock))
        small.append(_small_op(pool, clock))
        streaming.append(_attention_bandwidth(pool, clock))
        scoring.append(_attention_rate(pool, clock))
        referred.append(clock.time(reference))
        now = clock.now()
        if progress is not None:
            progress(min(1.0, (now - start) / budget), f"microbenchmarks, pass {number + 1}")
        if number + 1 >= MIN_PASSES and 2 * now - pass_start - start > budget:
            break
    return Microbenchmarks(
        fingerprint=environment.fingerprint,
        taken_at=datetime.now(UTC).isoformat(timespec="seconds"),
        matmuls=tuple(
            MatmulSample(s.rows, s.n, s.k, dtype, statistics.median(times[s]), s.layout)
            for s in sizes
        ),
        read_bandwidth=statistics.median(reading),
        copy_bandwidth=statistics.median(copying),
        fresh_bandwidth=statistics.median(fresh) if device.type == "cpu" else None,
        small_op=statistics.median(small),
        duration=clock.now() - start,
        reference=statistics.median(referred),
        commit=environment.software.commit,
        attention_rate=statistics.median(scoring),
        attention_bandwidth=statistics.median(streaming),
    )


@torch.inference_mode()
def recheck(device: torch.device, benchmarks: Microbenchmarks) -> float:
    """One product timed again: its time now over its time then, in less than a second.

    The plain product with the most FLOPs among those that took at most `RECHECK_COST`; the best of
    the repetitions, since other load only adds.
    """
    plain = [sample for sample in benchmarks.matmuls if sample.layout == "plain"]
    quick = [sample for sample in plain if sample.seconds <= RECHECK_COST]
    sample = max(quick or plain, key=lambda s: s.rows * s.n * s.k)
    size = Size(sample.rows, sample.n, sample.k)
    pool = Pool(2 * (sample.n * sample.k + 64), device, getattr(torch, sample.dtype))
    products, clock = Products(pool, {}, [size]), clock_for(device)
    repeats = products.repeats(size, clock)
    now = min(products.time(size, repeats, clock) for _ in range(7))
    return now / sample.seconds


def _pool_elements(shapes: Sequence[tuple[int, int]], dtype: str, cache: Bytes) -> int:
    element = BYTES_PER_ELEMENT[dtype]
    largest = 2 * max(n * k for n, k in shapes)
    elements = max(largest, int(min(POOL_CACHES * cache, POOL_LIMIT)) // element)
    return math.ceil(elements / 4) * 4  # halves and fp32 words come out even


def _read_bandwidth(pool: Pool, clock: Clock) -> BytesPerSecond:
    """Bytes a second when the whole pool is read once, as fp32 words, and summed."""
    words = pool.elements.view(torch.float32)

    def work() -> None:
        words.sum()

    return 4 * words.numel() / clock.time(work)


def _copy_bandwidth(pool: Pool, clock: Clock) -> BytesPerSecond:
    """Bytes read plus bytes written a second when one half of the pool overwrites the other.

    A processor may read what it is about to overwrite as well; that traffic is not counted.
    """
    source, target = pool.elements.chunk(2)

    def work() -> None:
        target.copy_(source)

    return 2 * source.numel() * source.element_size() / clock.time(work)


def _fresh_bandwidth(like: Tensor, clock: Clock) -> BytesPerSecond:
    """Bytes a second when memory is allocated, and written for the first time.

    Large enough that a C library maps it anew each time instead of handing out what was freed.
    """

    def work() -> None:
        like.new_empty(FRESH // like.element_size()).fill_(1)

    return FRESH / clock.time(work)


def _attention_bandwidth(pool: Pool, clock: Clock) -> BytesPerSecond:
    """Bytes of keys and values a second when a few queries attend to each head's: a decode step."""
    size = 2 * CONTEXT * HEAD
    heads = max(1, pool.elements.numel() // size)
    length = min(CONTEXT, pool.elements.numel() // (2 * HEAD))
    cache = pool.elements[: 2 * heads * length * HEAD].view(2, heads, 1, length, HEAD)
    queries = torch.randn(heads, 1, QUERIES, HEAD, device=cache.device).to(cache.dtype)

    def work() -> None:
        scaled_dot_product_attention(queries, cache[0], cache[1])

    return cache.nbytes / clock.time(work)


def _attention_rate(pool: Pool, clock: Clock) -> FlopsPerSecond:
    """FLOPs a second of causal attention over a sequence; pairs that do not attend do not count."""
    shape = (3, 1, HEADS, SEQUENCE, HEAD)
    query, key, value = torch.randn(shape, device=pool.elements.device).to(pool.elements.dtype)

    def work() -> None:
        scaled_dot_product_attention(query, key, value, is_causal=True)

    return 2 * HEADS * SEQUENCE * (SEQUENCE + 1) * HEAD / clock.time(work)


def _small_op(pool: Pool, clock: Clock) -> Seconds:
    """Mean time of one call on a few elements, when no call waits for another.

    Kinds of calls that an eager layer makes around its matrix products take turns. On a processor
    each is made once after the pool was read, as in a layer after its weights: they have driven
    its code from the caches, and it takes five to eight times as long as in a loop.
    """
    x = pool.elements[:4]
    index = torch.arange(len(x), device=x.device)
    calls: tuple[Callable[[], object], ...] = (
        lambda: torch.add(x, x),
        lambda: torch.softmax(x, 0),
        lambda: torch.sort(x),
        lambda: x.index_select(0, index),
        lambda: x.sum(),
        lambda: x.to(torch.float64),
    )

    def work(rounds: int) -> None:
        for _ in range(rounds):
            for call in calls:
                call()

    if x.device.type != "cpu":
        return clock.time(partial(work, SMALL_CALLS)) / (SMALL_CALLS * len(calls))
    times = []
    for _ in range(COLD_CALLS):
        pool.elements.view(torch.float32).sum()
        times.append(clock.time(partial(work, 1)))
    return statistics.median(times) / len(calls)
