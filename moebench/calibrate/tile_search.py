"""The search for a layer's best tiles on a device, within a limit of time.

It starts from the tiles that nobody timed and from those that others found, and then changes one
number of the best tiles at a time while that makes them faster.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from moebench.experts.gpu.occupancy import LIMITS, REGISTERS, WARP
from moebench.experts.gpu.tiles import KernelTile, KernelTiles
from moebench.experts.gpu.tuned import Candidate
from moebench.units import Seconds

GAIN = 0.01
"""Least gain for which tiles are changed: below it are noise and luck."""
LEAST_REGISTERS = 32
"""Registers of a thread besides its sums."""
MOST_REGISTERS = 255
"""Registers of a thread that any device has."""
WARPS, COLUMNS, DEPTHS = (4, 8), (16, 256), (64, 512)
"""Choices of warps, and least and most columns and bytes of depth."""
STAGES = (2, 7)
PROGRAMS = (1, 2, 3, 4)


class TileRefused(Exception):
    """Tiles that the compiler or the device does not take; the message says why."""


Timer = Callable[[Candidate], Seconds]
"""Time of a layer with these tiles; raises `TileRefused`."""


@dataclass
class Search:
    """The state of one layer's search."""

    capability: int
    element_bytes: int
    timer: Timer
    is_over: Callable[[], bool]
    """Whether the time is over."""
    known: dict[Candidate, Seconds | None] = field(default_factory=dict)
    """Time of every candidate that was tried; None: refused."""

    def run(self, untuned: Candidate, seeds: Sequence[Candidate]) -> tuple[Candidate, bool]:
        """The best candidate, and whether the search ended by itself.

        The untuned tiles are timed whatever the limit: all others are measured against them.
        """
        self._time(untuned)
        for seed in seeds:
            if self.is_over():
                return self._best(untuned), False
            self._time(seed)
        best = self._best(untuned)
        while True:
            improved = False
            for neighbour in neighbours(best):
                if self.is_over():
                    return self._best(untuned), False
                seconds = self._time(neighbour)
                reference = self.known[best]
                if seconds is not None and (reference is None or gains(seconds, reference)):
                    best, improved = neighbour, True
                    break
            if not improved:
                return best, True

    def _time(self, candidate: Candidate) -> Seconds | None:
        if candidate not in self.known:
            self.known[candidate] = None
            if not any(refusals(self.capability, candidate.tiles, self.element_bytes)):
                with contextlib.suppress(TileRefused):
                    self.known[candidate] = self.timer(candidate)
        return self.known[candidate]

    def _best(self, untuned: Candidate) -> Candidate:
        """The fastest so far, if it is faster than the untuned one by more than noise."""
        timed = {each: seconds for each, seconds in self.known.items() if seconds is not None}
        if not timed:
            return untuned
        best = min(timed, key=lambda each: timed[each])
        is_better = untuned not in timed or gains(timed[best], timed[untuned])
        return best if is_better else untuned


def gains(seconds: Seconds, reference: Seconds) -> bool:
    """Whether a time is shorter than another by more than noise."""
    return seconds < (1 - GAIN) * reference


def refusals(capability: int, tiles: KernelTiles, element_bytes: int) -> Iterator[str]:
    """Why tiles cannot fit, seen before they are compiled; the compiler may refuse more."""
    limits = LIMITS[max(known for known in LIMITS if known <= capability)]
    for name, tile, products in (("up", tiles.up, 2), ("down", tiles.down, 1)):
        step = tile.depth_bytes * (tile.rows + products * tile.columns)
        # wgmma and tcgen05 read every stage from shared memory, mma.sync one fewer.
        shared = step * (tile.stages - 1)
        if shared > limits.shared_bytes_per_block:
            yield f"{name}: {shared} bytes of shared memory, {limits.shared_bytes_per_block} fit"
        threads = WARP * tile.warps
        registers = products * tile.rows * tile.columns // threads + LEAST_REGISTERS
        if registers > min(MOST_REGISTERS, REGISTERS // threads):
            yield f"{name}: {registers} registers of a thread"
        if tile.depth(element_bytes) < 16:
            yield f"{name}: a step of {tile.depth(element_bytes)} elements, 16 are needed"
        if tile.is_swapped and tile.columns < 64 and capability // 10 in (9, 10):
            yield f"{name}: {tile.columns} weights as left operand, tensor cores take 64"


def neighbours(candidate: Candidate) -> Iterator[Candidate]:
    """Candidates that differ in one number."""
    for name in ("down", "up"):
        tile: KernelTile = getattr(candidate.tiles, name)
        for changed in _neighbours(tile):
            tiles = dataclasses.replace(candidate.tiles, **{name: changed})
            yield dataclasses.replace(candidate, tiles=tiles)
    for programs in PROGRAMS:
        if abs(programs - candidate.programs) == 1:
            yield dataclasses.replace(candidate, programs=programs)


def _neighbours(tile: KernelTile) -> Iterator[KernelTile]:
    """Tiles of the same rows: the routing cut those."""
    for stages in (tile.stages + 1, tile.stages - 1):
        if STAGES[0] <= stages <= STAGES[1]:
            yield dataclasses.replace(tile, stages=stages)
    for columns in (2 * tile.columns, tile.columns // 2):
        if COLUMNS[0] <= columns <= COLUMNS[1]:
            yield dataclasses.replace(tile, columns=columns)
    for depth in (2 * tile.depth_bytes, tile.depth_bytes // 2):
        if DEPTHS[0] <= depth <= DEPTHS[1]:
            yield dataclasses.replace(tile, depth_bytes=depth)
    for warps in WARPS:
        if warps != tile.warps:
            yield dataclasses.replace(tile, warps=warps)
