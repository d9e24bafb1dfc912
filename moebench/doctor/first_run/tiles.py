"""Other tiles than those that the kernels choose, side by side in graphs.

What is compared is how many rows a tile has, and into how many parts the second matmul's sum is
split. The columns of a tile and its stages are those of the table for that many rows.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

from torch import Tensor

from moebench.doctor.first_run.checks import Mark
from moebench.doctor.first_run.kernel_bench import KernelBench
from moebench.experts import triton
from moebench.experts.gpu.tiles import MOST_PARTS
from moebench.measure.graph import capture
from moebench.routers.routing import Router
from moebench.units import Seconds

MEAN_ROWS = {16: 8, 32: 16, 64: 64, 128: 128}
"""Rows of a tile, and the mean rows of an expert for which it is chosen."""
PARTS = tuple(2**power for power in range(MOST_PARTS.bit_length()))
WORSE = 1.05
"""Largest time of the chosen tiles, over that of the best, that is left as it is."""


def compare_tiles(
    bench: KernelBench, what: str, routers: Sequence[Router], ring: Tensor, chosen: Seconds
) -> None:
    """Time a step with every number of rows and of parts; `chosen` is the time as it is chosen."""
    tokens, experts = ring.shape[1], bench.model.num_experts
    by_rows = {rows: forced_rows(routers, rows, experts / tokens) for rows in MEAN_ROWS}
    by_parts = {parts: forced_parts(parts) for parts in PARTS}
    for name, forced in (("rows of a tile", by_rows), ("parts of the sum", by_parts)):
        numbers = [*forced][:: 3 if bench.run.is_imitated else 1]
        times: dict[int, Seconds] = {}
        for number in numbers:
            try:
                with forced[number]:
                    times[number] = _time(bench, routers, ring)
            except Exception as error:  # a tile that does not fit says so and hides no other
                bench.run.fail("tiles", f"{what}, {number} {name}", error)
        bench.run.record("tiles", what=what, compared=name, chosen_s=chosen, seconds=times)
        if times:
            best = min(times, key=lambda number: times[number])
            mark = Mark("docs/gpu.md", "times the best", at_most=WORSE, needs_gpu=True)
            seen = f"{what}: as chosen, against {best} {name}"
            bench.run.judge("tiles", seen, chosen / times[best], mark)


def _time(bench: KernelBench, routers: Sequence[Router], ring: Tensor) -> Seconds:
    bounded, eager = bench.step(routers, "triton", True), bench.step(routers, "triton", False)
    return bench.replayed(capture(bounded, eager, ring), ring)


@contextmanager
def forced_rows(routers: Sequence[Router], rows: int, experts_per_token: float) -> Iterator[None]:
    """Tiles of this many rows, from an operating point that is not the routers' own.

    Where the second sum is split by the load that is expected, that is another one as well.
    """
    before = [router.mean_k for router in routers]
    try:
        for router in routers:
            router.mean_k = MEAN_ROWS[rows] * experts_per_token
        yield
    finally:
        for router, mean_k in zip(routers, before, strict=True):
            router.mean_k = mean_k


@contextmanager
def forced_parts(number: int) -> Iterator[None]:
    """The second matmul's sum in this many parts, whatever would be idle."""
    with mock.patch.object(triton, "choose_parts", lambda *_: number):
        yield
