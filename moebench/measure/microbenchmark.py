"""Microbenchmarks: what dense matrix products, memory and single calls cost on this machine.

The input of a calibration. Products are called as experts call them (`linear` with a weight of
shape [outputs, inputs]); weights come from a pool far larger than the last-level cache, so they
are read from memory as those of a large model are. All sizes take turns, so that drift of the
machine hits all of them alike. Data are random: zeros run faster.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

from moebench.measure.environment import describe_machine
from moebench.measure.latency import Clock, Progress, clock_for
from moebench.measure.reference import reference_operation
from moebench.results import MatmulSample, Microbenchmarks
from moebench.units import BYTES_PER_ELEMENT, Bytes, BytesPerSecond, Seconds

SHAPES = (
    (14336, 4096),
    (4096, 14336),
    (4096, 4096),
    (1024, 3584),
    (3584, 1024),
    (1024, 2048),
    (2048, 768),
    (128, 2048),
    (64, 64),
)
"""Outputs and inputs of the weights: experts from Mixtral's down to fine-grained ones, a router,
and one so small that only the call is left."""
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
MIN_PASSES, MAX_PASSES = 5, 25
MIN_VISIT: Seconds = 0.5e-3
"""A timed visit repeats a product, with other weights each time, until it lasts about this."""
POOL_CACHES = 4
"""The pool of weights is at least this many last-level caches."""
POOL_LIMIT: Bytes = 1.5e9
SMALL_CALLS = 100
FRESH = 1 << 27
"""Bytes of new memory: more than a C library keeps of what was freed (32 MiB at most in glibc)."""
RECHECK_COST: Seconds = 0.04


class Pool:
    """Random elements from which weights are cut, always the ones not used for longest."""

    def __init__(self, num_elements: int, device: torch.device, dtype: torch.dtype):
        generator = torch.Generator(device).manual_seed(0)
        self.elements = torch.empty(num_elements, device=device, dtype=dtype)
        self.elements.normal_(generator=generator)
        self._next = 0

    def weight(self, n: int, k: int) -> Float[Tensor, "n k"]:
        """The next weight of shape [n, k]; a view, cut one behind the other."""
        if self._next + n * k > self.elements.numel():
            self._next = 0
        cut = self.elements[self._next : self._next + n * k]
        # The next weight starts at a multiple of 64 elements: a cache line, as allocators align.
        self._next += math.ceil(n * k / 64) * 64
        return cut.view(n, k)


@torch.inference_mode()
def microbenchmarks(
    device: torch.device,
    dtype: str = "bfloat16",
    budget: Seconds = 90.0,
    progress: Progress | None = None,
    shapes: Sequence[tuple[int, int]] = SHAPES,
    rows: Sequence[int] = ROWS,
) -> Microbenchmarks:
    """Measure matrix products over sizes, memory bandwidth and the cost of a small call.

    At least `MIN_PASSES` passes over all sizes are made, more while the budget lasts. Memory:
    the pool (at most `POOL_LIMIT` or twice the largest weight) and the largest product.

    Args:
        device: where to compute.
        dtype: of weights and activations.
        budget: wall time to aim at.
        progress: told after every pass.
        shapes: outputs and inputs of the weights.
        rows: tokens of a product.
    """
    clock = clock_for(device)
    start = clock.now()
    environment = describe_machine(device)
    cache = (environment.gpu.l2_cache if environment.gpu else environment.cpu.l3_cache) or 32e6
    pool = Pool(_pool_elements(shapes, dtype, cache), device, getattr(torch, dtype))
    activations = pool.elements.new_empty(max(rows) * max(k for _, k in shapes)).normal_()

    sizes = [(r, n, k) for n, k in shapes for r in rows]
    repeats = {size: _repeats(size, pool, activations, clock) for size in sizes}
    times: dict[tuple[int, int, int], list[Seconds]] = {size: [] for size in sizes}
    reading: list[BytesPerSecond] = []
    copying: list[BytesPerSecond] = []
    fresh: list[BytesPerSecond] = []
    small: list[Seconds] = []
    referred: list[Seconds] = []
    reference = reference_operation(device)
    reference()
    for number in range(MAX_PASSES):
        pass_start = clock.now()
        for size in sizes:
            times[size].append(_time_matmul(size, repeats[size], pool, activations, clock))
        reading.append(_read_bandwidth(pool, clock))
        copying.append(_copy_bandwidth(pool, clock))
        fresh.append(_fresh_bandwidth(pool.elements, clock))
        small.append(_small_op(pool.elements[:4], clock))
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
            MatmulSample(r, n, k, dtype, statistics.median(times[r, n, k])) for r, n, k in sizes
        ),
        read_bandwidth=statistics.median(reading),
        copy_bandwidth=statistics.median(copying),
        fresh_bandwidth=statistics.median(fresh) if device.type == "cpu" else None,
        small_op=statistics.median(small),
        duration=clock.now() - start,
        reference=statistics.median(referred),
        commit=environment.software.commit,
    )


@torch.inference_mode()
def recheck(device: torch.device, benchmarks: Microbenchmarks) -> float:
    """One product timed again: its time now over its time then, in less than a second.

    The product with the most FLOPs among those that took at most `RECHECK_COST`; the best of the
    repetitions, since other load only adds.
    """
    quick = [sample for sample in benchmarks.matmuls if sample.seconds <= RECHECK_COST]
    sample = max(quick or benchmarks.matmuls, key=lambda s: s.rows * s.n * s.k)
    size = (sample.rows, sample.n, sample.k)
    pool = Pool(2 * (sample.n * sample.k + 64), device, getattr(torch, sample.dtype))
    activations = pool.elements.new_empty(sample.rows * sample.k).normal_()
    clock = clock_for(device)
    repeats = _repeats(size, pool, activations, clock)
    now = min(_time_matmul(size, repeats, pool, activations, clock) for _ in range(7))
    return now / sample.seconds


def _pool_elements(shapes: Sequence[tuple[int, int]], dtype: str, cache: Bytes) -> int:
    element = BYTES_PER_ELEMENT[dtype]
    largest = 2 * max(n * k for n, k in shapes)
    elements = max(largest, int(min(POOL_CACHES * cache, POOL_LIMIT)) // element)
    return math.ceil(elements / 4) * 4  # halves and fp32 words come out even


def _time_matmul(
    size: tuple[int, int, int], repeats: int, pool: Pool, activations: Tensor, clock: Clock
) -> Seconds:
    """Seconds of one product, over `repeats` of them with different weights."""
    r, n, k = size
    x = activations[: r * k].view(r, k)
    weights = [pool.weight(n, k) for _ in range(repeats)]

    def work() -> None:
        for weight in weights:
            linear(x, weight)

    return clock.time(work) / repeats


def _repeats(size: tuple[int, int, int], pool: Pool, activations: Tensor, clock: Clock) -> int:
    """How many products fill `MIN_VISIT`; warms the size up as well."""
    first, second = (_time_matmul(size, 1, pool, activations, clock) for _ in range(2))
    return max(1, min(200, math.ceil(MIN_VISIT / max(min(first, second), 1e-7))))


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


def _small_op(x: Float[Tensor, " elements"], clock: Clock) -> Seconds:
    """Mean time of one call on a few elements, when no call waits for another.

    Kinds of calls that an eager layer makes around its matrix products take turns.
    """
    index = torch.arange(len(x), device=x.device)
    calls: tuple[Callable[[], object], ...] = (
        lambda: torch.add(x, x),
        lambda: torch.softmax(x, 0),
        lambda: torch.sort(x),
        lambda: x.index_select(0, index),
        lambda: x.sum(),
        lambda: x.to(torch.float64),
    )

    def work() -> None:
        for _ in range(SMALL_CALLS):
            for call in calls:
                call()

    return clock.time(work) / (SMALL_CALLS * len(calls))
