"""Matrix products as experts call them, timed with weights that come from memory.

Weights are cut from a pool far larger than the last-level cache and take turns, so they are read
from memory as those of a large model are. Data are random: zeros run faster. On a GPU products are
replayed as a graph: a host would launch small ones slower than the device computes them.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

from moebench.experts.cpu import library as avx512
from moebench.experts.cpu import onednn
from moebench.measure.clocks import Clock, CudaClock
from moebench.measure.graph import Launch, recorded
from moebench.spec.ops import Layout
from moebench.units import Seconds

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
MIN_VISIT: Seconds = 0.5e-3
"""A timed visit repeats a product, with other weights each time, until it lasts about this."""
MOST_REPEATS = 200
"""Most products of a visit, and most packed copies of weights of one shape."""
REPLAYED: Seconds = 1e-3
"""Device time of a graph of products, whose single launch adds about 1 %."""
MOST_REPLAYED, FIRST_REPLAYED = 500, 8
"""Most products of a graph, and those of a graph that says how many last `REPLAYED`."""


@dataclass(frozen=True)
class Size:
    """A matrix product to time."""

    rows: int
    n: int
    k: int
    layout: Layout = "plain"


def _grid() -> dict[Layout, tuple[Size, ...]]:
    # Neither attention's nor a router's weights are packed. Our kernel is called once for all
    # experts, so what a call costs is no part of a product: the smallest shape is left out.
    packed = [shape for shape in SHAPES if shape not in ((4096, 4096), (128, 2048))]
    packed_rows = [rows for rows in ROWS if onednn.LEAST_ROWS <= rows <= 1024]
    streamed = [shape for shape in packed if shape != (64, 64)]
    streamed_rows = (1, 2, 4, 8, 16, 32, 64, 128, 512)
    # Shapes take turns, so that all others' weights come between two uses of one.
    return {
        "plain": tuple(Size(rows, n, k) for n, k in SHAPES for rows in ROWS),
        "packed": tuple(Size(rows, n, k, "packed") for rows in packed_rows for n, k in packed),
        "avx512": tuple(Size(rows, n, k, "avx512") for rows in streamed_rows for n, k in streamed),
    }


GRID: Mapping[Layout, tuple[Size, ...]] = _grid()
"""Products that are timed for each layout of weights."""


class Weights:
    """Weights of one layout, and the products that are made with them."""

    def weight(self, n: int, k: int) -> Tensor:
        """The weight of shape [n, k] that was not used for longest."""
        raise NotImplementedError

    def multiply(self, x: Float[Tensor, "rows k"], weight: Tensor) -> Tensor:
        return linear(x, weight)

    def most(self, n: int, k: int) -> int:
        """How many products of shape [n, k] a visit may run."""
        return MOST_REPEATS

    def work(self, x: Float[Tensor, "rows k"], n: int, repeats: int) -> Callable[[], None]:
        """That many products of x, with the weights of shape [n, k] not used for longest."""
        weights = [self.weight(n, x.shape[1]) for _ in range(repeats)]

        def work() -> None:
            for weight in weights:
                self.multiply(x, weight)

        return work


class Pool(Weights):
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


class PackedPool(Weights):
    """Packed weights, of each shape at least two that take turns."""

    def __init__(self, pool: Pool, shapes: Sequence[tuple[int, int]]) -> None:
        self._turns = {
            shape: itertools.cycle(
                [onednn.packed_weight(pool.weight(*shape)) for _ in range(count)]
            )
            for shape, count in _counts(pool, shapes).items()
        }

    def weight(self, n: int, k: int) -> Tensor:
        return next(self._turns[n, k])

    def multiply(self, x: Float[Tensor, "rows k"], weight: Tensor) -> Tensor:
        return onednn.linear(x, weight)


class StreamedPool(Weights):
    """Stacks of weights in the blocks of our own kernel, one for each shape."""

    def __init__(self, pool: Pool, shapes: Sequence[tuple[int, int]]) -> None:
        self._stacks = {
            shape: avx512.blocks(torch.stack([pool.weight(*shape) for _ in range(count)]))
            for shape, count in _counts(pool, shapes).items()
        }
        self._next = dict.fromkeys(shapes, 0)

    def most(self, n: int, k: int) -> int:
        """One product for each weight: one call runs them all."""
        return len(self._stacks[n, k])

    def work(self, x: Float[Tensor, "rows k"], n: int, repeats: int) -> Callable[[], None]:
        rows, k = x.shape
        stack = self._stacks[n, k]
        first = self._next[n, k] if self._next[n, k] + repeats <= len(stack) else 0
        self._next[n, k] = first + repeats
        matrices = stack[first : first + repeats]
        indices = torch.arange(rows).repeat(repeats)
        counts, y = torch.full((repeats,), rows), x.new_empty(repeats * rows, n)
        return lambda: avx512.ragged_linear(x, indices, counts, matrices, y)


def _counts(pool: Pool, shapes: Sequence[tuple[int, int]]) -> dict[tuple[int, int], int]:
    """How many weights of each shape share the pool's size; two at least, that take turns."""
    share = pool.elements.numel() / max(1, len(shapes))
    return {(n, k): min(MOST_REPEATS, max(2, int(share / (n * k)))) for n, k in shapes}


class Products:
    """Runs a product of any size on random data."""

    def __init__(self, pool: Pool, sizes: Sequence[Size]) -> None:
        self._inputs = pool.elements.new_empty(max(s.rows * s.k for s in sizes)).normal_()
        self._weights: dict[Layout, Weights] = {"plain": pool}
        self._graphs: dict[tuple[Size, int], Launch] = {}
        kinds: dict[Layout, type[PackedPool] | type[StreamedPool]] = {
            "packed": PackedPool,
            "avx512": StreamedPool,
        }
        for layout, kind in kinds.items():
            shapes = list(dict.fromkeys((s.n, s.k) for s in sizes if s.layout == layout))
            if shapes:
                self._weights[layout] = kind(pool, shapes)

    def time(self, size: Size, repeats: int, clock: Clock) -> Seconds:
        """Seconds of one product, over `repeats` of them with different weights."""
        if not isinstance(clock, CudaClock):
            return clock.time(self._work(size, repeats)) / repeats
        graph = self._graphs.get((size, repeats))
        if graph is None:
            graph, _ = recorded(self._work(size, repeats), self._inputs.device, warm_ups=1)
            # The graph of a size whose number of products is known stays; others go.
            self._graphs = {key: one for key, one in self._graphs.items() if key[0] != size}
            self._graphs[size, repeats] = graph
        return clock.time(graph) / repeats

    def _work(self, size: Size, repeats: int) -> Callable[[], None]:
        x = self._inputs[: size.rows * size.k].view(size.rows, size.k)
        return self._weights[size.layout].work(x, size.n, repeats)

    def repeats(self, size: Size, clock: Clock) -> int:
        """How many products fill a visit; warms the size up as well."""
        is_gpu = isinstance(clock, CudaClock)
        trial, visit = (FIRST_REPLAYED, REPLAYED) if is_gpu else (1, MIN_VISIT)
        first, second = (self.time(size, trial, clock) for _ in range(2))
        most = MOST_REPLAYED if is_gpu else self._weights[size.layout].most(size.n, size.k)
        return max(1, min(most, math.ceil(visit / max(min(first, second), 1e-7))))


def layouts(device: torch.device, dtype: str) -> tuple[Layout, ...]:
    """Layouts of weights that matmuls are timed with on a device."""
    found: list[Layout] = ["plain"]
    if device.type == "cpu" and onednn.can_pack(getattr(torch, dtype)):
        found.append("packed")
    if device.type == "cpu" and getattr(torch, dtype) in avx512.DTYPES and not avx512.why_not():
        found.append("avx512")
    return tuple(found)
