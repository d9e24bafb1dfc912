"""Microbenchmarks: what dense matrix products, memory and single calls cost on this machine.

The input of a calibration. All sizes take turns, so that drift of the machine hits all of them
alike. Attention is timed as a decode step calls it, few queries against keys and values beyond the
last-level cache, and as a prefill does, as many queries as keys. On a GPU each is repeated until 5
ms are full, and what the host takes to launch a call is timed apart from what the device takes.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from moebench.calibrate.products import GRID, Pool, Products, Size, layouts
from moebench.calibrate.small_calls import cold_call, host_launch, small_kernel
from moebench.measure.clocks import Clock, CudaClock, clock_for, mean_time
from moebench.measure.environment import describe_machine
from moebench.measure.host import meter
from moebench.measure.latency import Progress
from moebench.measure.reference import reference_operation
from moebench.records.timings import MatmulSample, Microbenchmarks
from moebench.spec.ops import Layout
from moebench.units import BYTES_PER_ELEMENT, Bytes, BytesPerSecond, FlopsPerSecond, Seconds

MIN_PASSES, MAX_PASSES = 5, 25
MOST_BUDGETS = 2
"""A busy machine makes as many passes as this many budgets hold, and one at least."""
POOL_CACHES = 4
"""The pool of weights is at least this many last-level caches."""
POOL_LIMIT: Bytes = 1.5e9
HEAD = 128
"""Elements of a key and of a value, in attention."""
QUERIES, CONTEXT = 4, 1024
"""Queries of a decode step that share a head's keys, and the positions that they attend to."""
HEADS, SEQUENCE, GPU_SEQUENCE = 32, 512, 4096
"""Heads and tokens of a prefill; 512 tokens would be 5 microseconds of a GPU."""
FRESH = 1 << 27
"""Bytes of new memory: more than a C library keeps of what was freed (32 MiB at most in glibc)."""
RECHECK_COST: Seconds = 0.04
RECHECK_SHAPES, RECHECK_TURNS = 3, 9
"""Shapes of weights that are timed again, and how often."""


@torch.inference_mode()
def microbenchmarks(
    device: torch.device,
    dtype: str = "bfloat16",
    budget: Seconds = 90.0,
    progress: Progress | None = None,
    grid: Mapping[Layout, tuple[Size, ...]] = GRID,
) -> Microbenchmarks:
    """Measure matrix products over sizes, memory bandwidth and the cost of a small call.

    At least `MIN_PASSES` passes over all sizes are made, more while the budget lasts, fewer where
    that would take `MOST_BUDGETS` times the budget. Memory:
    the pool (at most `POOL_LIMIT` or twice the largest weight), up to 2.5 times as much again
    for each further layout of weights, and the largest product.

    Args:
        device: where to compute.
        dtype: of weights and activations.
        budget: wall time to aim at.
        progress: called after every pass with the share of the budget that is spent.
        grid: products of each layout; a layout that the device lacks is not timed.
    """
    clock = clock_for(device)
    start = clock.now()
    environment = describe_machine(device)
    cache = (environment.gpu.l2_cache if environment.gpu else environment.cpu.l3_cache) or 32e6
    pool = Pool(_pool_elements(grid["plain"], dtype, cache), device, getattr(torch, dtype))
    sizes = [size for layout in layouts(device, dtype) for size in grid[layout]]
    products = Products(pool, sizes)
    repeats = {size: products.repeats(size, clock) for size in sizes}
    times: dict[Size, list[Seconds]] = {size: [] for size in sizes}
    reference = reference_operation(device)
    reference()
    instruments: dict[str, Callable[[], float]] = {
        "read_bandwidth": lambda: _read_bandwidth(pool, clock),
        "copy_bandwidth": lambda: _copy_bandwidth(pool, clock),
        "attention_bandwidth": lambda: _attention_bandwidth(pool, clock),
        "attention_rate": lambda: _attention_rate(pool, clock),
        **_of_kind(device, pool, clock),
        "reference": lambda: reference.time(clock),
        "reference_reading": reference.reading,  # of the call before
    }
    figures: dict[str, list[float]] = {name: [] for name in instruments}
    host = meter(device)
    loads = []
    for number in range(MAX_PASSES):
        pass_start = clock.now()
        host.start()
        for size in sizes:
            times[size].append(products.time(size, repeats[size], clock))
        for name, measure in instruments.items():
            figures[name].append(measure())
        loads.append(host.load(number))
        now = clock.now()
        if progress is not None:
            progress(min(1.0, (now - start) / budget), f"microbenchmarks, pass {number + 1}")
        is_over = number + 1 >= MIN_PASSES and 2 * now - pass_start - start > budget
        if is_over or now - start > MOST_BUDGETS * budget:
            break
    medians: dict[str, float | None] = {"fresh_bandwidth": None} | {
        name: statistics.median(values) for name, values in figures.items()
    }
    return Microbenchmarks(
        fingerprint=environment.fingerprint,
        taken_at=datetime.now(UTC).isoformat(timespec="seconds"),
        matmuls=tuple(
            MatmulSample(s.rows, s.n, s.k, dtype, statistics.median(times[s]), s.layout)
            for s in sizes
        ),
        duration=clock.now() - start,
        commit=environment.software.commit,
        load=host.host_load(tuple(loads)),
        **medians,  # type: ignore[arg-type]
    )


@torch.inference_mode()
def recheck(device: torch.device, benchmarks: Microbenchmarks) -> float:
    """Some products timed again: their time now over their time then, in a few seconds.

    Of the plain products that took at most `RECHECK_COST` those with the most FLOPs, one a shape.
    A machine is slower if the best of their turns is, since other load only adds, and faster if
    most of them are: a calibration holds medians. Of the shapes the median.
    """
    plain = [sample for sample in benchmarks.matmuls if sample.layout == "plain"]
    quick = [sample for sample in plain if sample.seconds <= RECHECK_COST] or plain
    quick = sorted(quick, key=lambda sample: sample.rows * sample.n * sample.k, reverse=True)
    shapes = dict.fromkeys((sample.n, sample.k) for sample in quick)
    largest = [next(s for s in quick if (s.n, s.k) == shape) for shape in shapes]
    samples = largest[:RECHECK_SHAPES]
    then = {Size(s.rows, s.n, s.k): s.seconds for s in samples}
    elements = 2 * max(size.n * size.k + 64 for size in then)
    pool = Pool(elements, device, getattr(torch, samples[0].dtype))
    products, clock = Products(pool, [*then]), clock_for(device)
    repeats = {size: products.repeats(size, clock) for size in then}
    turns: dict[Size, list[float]] = {size: [] for size in then}
    for _ in range(RECHECK_TURNS):
        for size, seconds in then.items():
            turns[size].append(products.time(size, repeats[size], clock) / seconds)
    return statistics.median(
        max(min(ratios), min(1.0, statistics.median(ratios))) for ratios in turns.values()
    )


def reading_now(device: torch.device) -> Seconds:
    """Time of the reference operation's pass over memory now, on a quiet machine: a median."""
    reference = reference_operation(device)
    times = []
    for _ in range(1 + RECHECK_TURNS):
        reference()
        times.append(reference.reading())
    return statistics.median(times[1:])


def _pool_elements(sizes: Sequence[Size], dtype: str, cache: Bytes) -> int:
    element = BYTES_PER_ELEMENT[dtype]
    largest = 2 * max(size.n * size.k for size in sizes)
    elements = max(largest, int(min(POOL_CACHES * cache, POOL_LIMIT)) // element)
    return math.ceil(elements / 4) * 4  # halves and fp32 words come out even


def _of_kind(device: torch.device, pool: Pool, clock: Clock) -> Mapping[str, Callable[[], float]]:
    """The instruments that a processor and a GPU do not share."""
    if device.type == "cpu":
        return {
            "fresh_bandwidth": lambda: _fresh_bandwidth(pool.elements, clock),
            "small_op": lambda: cold_call(pool, clock),
        }
    return {
        "small_op": lambda: host_launch(pool, clock),
        "small_kernel": lambda: small_kernel(pool, clock),
    }


def _read_bandwidth(pool: Pool, clock: Clock) -> BytesPerSecond:
    """Bytes a second when the whole pool is read once, as fp32 words, and summed."""
    words = pool.elements.view(torch.float32)
    return words.nbytes / mean_time(lambda: words.sum(), clock)


def _copy_bandwidth(pool: Pool, clock: Clock) -> BytesPerSecond:
    """Bytes read plus bytes written a second when one half of the pool overwrites the other.

    A processor may read what it is about to overwrite as well; that traffic is not counted.
    """
    source, target = pool.elements.chunk(2)
    return 2 * source.nbytes / mean_time(lambda: target.copy_(source), clock)


def _fresh_bandwidth(like: Tensor, clock: Clock) -> BytesPerSecond:
    """Bytes a second when memory is allocated, and written for the first time.

    Large enough that a C library maps it anew each time instead of handing out what was freed.
    """
    count = FRESH // like.element_size()
    return FRESH / clock.time(lambda: like.new_empty(count).fill_(1))


def _attention_bandwidth(pool: Pool, clock: Clock) -> BytesPerSecond:
    """Bytes of keys and values a second when a few queries attend to each head's: a decode step."""
    size = 2 * CONTEXT * HEAD
    heads = max(1, pool.elements.numel() // size)
    length = min(CONTEXT, pool.elements.numel() // (2 * HEAD))
    cache = pool.elements[: 2 * heads * length * HEAD].view(2, heads, 1, length, HEAD)
    queries = torch.randn(heads, 1, QUERIES, HEAD, device=cache.device).to(cache.dtype)
    keys, values = cache
    attend = partial(scaled_dot_product_attention, queries, keys, values)
    return cache.nbytes / mean_time(attend, clock)


def _attention_rate(pool: Pool, clock: Clock) -> FlopsPerSecond:
    """FLOPs a second of causal attention over a sequence; pairs that do not attend do not count."""
    length = GPU_SEQUENCE if isinstance(clock, CudaClock) else SEQUENCE
    shape = (3, 1, HEADS, length, HEAD)
    query, key, value = torch.randn(shape, device=pool.elements.device).to(pool.elements.dtype)
    attend = partial(scaled_dot_product_attention, query, key, value, is_causal=True)
    return 2 * HEADS * length * (length + 1) * HEAD / mean_time(attend, clock)
