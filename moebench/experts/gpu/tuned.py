"""Which tiles a layer runs: those that a sweep on this device found, or the compiler's choice.

A sweep (`python -m moebench.calibrate.tiles`) times tiles on the device and keeps the best of each
layer in the user's cache, under a fingerprint of the device, of Triton and of the kernels' text.
All else runs the tiles of `moebench.experts.gpu.tiles`, which no GPU has timed.
"""

import contextlib
import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from moebench.experts.gpu.tiles import (
    PROGRAMS_PER_MULTIPROCESSOR,
    KernelTile,
    KernelTiles,
    choose_tiles,
)
from moebench.files import cache_directory, replace_file
from moebench.spec.schema import decode, encode
from moebench.units import Seconds

UNTIMED = "tiles.py, not timed"
"""Origin of tiles that no sweep found."""


@dataclass(frozen=True)
class LayerSizes:
    """What the tiles of a layer are chosen by; sweeps time gated experts."""

    experts: int
    hidden_size: int
    intermediate_size: int
    rows: int
    """Rows of a row tile, which the routing's expected load decides."""
    element_bytes: int = 2


@dataclass(frozen=True)
class Candidate:
    """Tiles of both kernels, and how far the second one's sum is split."""

    tiles: KernelTiles
    programs: int = PROGRAMS_PER_MULTIPROCESSOR
    """Programs of a multiprocessor up to which the second matmul's sum is split."""

    @property
    def text(self) -> str:
        """The tiles in words: "up 16 x 64 x 256 B, 4 warps, 3 stages, swapped; down ..."."""
        both = (("up", self.tiles.up), ("down", self.tiles.down))
        parts = [f"{name} {_words(tile)}" for name, tile in both]
        return f"{'; '.join(parts)}; split to {self.programs} programs a multiprocessor"


@dataclass(frozen=True)
class ChosenTiles(Candidate):
    """The tiles that a layer runs."""

    origin: str = UNTIMED


@dataclass(frozen=True)
class TunedTiles:
    """What a sweep found for one layer."""

    sizes: LayerSizes
    best: Candidate
    seconds: Seconds
    """Time of the best; the geometric mean over the batches that were timed."""
    untuned_seconds: Seconds | None
    """Time of the tiles that no sweep chose; None: they were refused."""
    tokens: tuple[int, ...]
    """Batches that were timed."""
    timed: int
    refused: int
    """Tiles that the compiler or the device refused."""
    is_complete: bool
    """Whether the search ended by itself and not by its time limit."""
    made: str
    """When, in ISO 8601."""


@dataclass(frozen=True)
class TunedTable:
    """All sweeps of a device."""

    fingerprint: str
    device: str
    layers: tuple[TunedTiles, ...] = ()

    def of(self, sizes: LayerSizes) -> TunedTiles | None:
        """The sweep of a layer."""
        return next((each for each in self.layers if each.sizes == sizes), None)


def table_path(fingerprint: str) -> Path:
    """Where the sweeps of a device are kept."""
    return cache_directory() / f"{fingerprint}-tiles.json"


@functools.cache
def tuned_table(fingerprint: str) -> TunedTable | None:
    """The kept sweeps of a device; None where there are none that can be read."""
    try:
        text = table_path(fingerprint).read_text(encoding="utf-8")
        found = decode(TunedTable, json.loads(text), str(table_path(fingerprint)))
    except (OSError, ValueError):
        return None
    return found if found.fingerprint == fingerprint else None


def keep(table: TunedTable) -> None:
    """Keep the sweeps of a device; the next lookup finds them."""
    path = table_path(table.fingerprint)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps(encode(table), indent=1).encode())
    tuned_table.cache_clear()
    chosen_tiles.cache_clear()


_FORCED: dict[LayerSizes, Candidate] = {}


@contextlib.contextmanager
def forced(sizes: LayerSizes, candidate: Candidate) -> Iterator[None]:
    """Run these tiles in place of any others, as a sweep does."""
    _FORCED[sizes] = candidate
    chosen_tiles.cache_clear()
    try:
        yield
    finally:
        del _FORCED[sizes]
        chosen_tiles.cache_clear()


@functools.cache
def chosen_tiles(fingerprint: str | None, capability: int, sizes: LayerSizes) -> ChosenTiles:
    """The tiles of a layer on a device, and where they come from.

    Args:
        fingerprint: Of the device; None where nothing is tuned, as in Triton's interpreter.
    """
    candidate = _FORCED.get(sizes)
    if candidate is not None:
        return ChosenTiles(candidate.tiles, candidate.programs, "forced")
    table = tuned_table(fingerprint) if fingerprint is not None else None
    found = table.of(sizes) if table is not None else None
    if found is None:
        return ChosenTiles(choose_tiles(capability, sizes.rows, sizes.element_bytes))
    origin = f"timed here, {found.made[:10]}"
    return ChosenTiles(found.best.tiles, found.best.programs, origin)


def _words(tile: KernelTile) -> str:
    size = f"{tile.rows} x {tile.columns} x {tile.depth_bytes} B"
    return f"{size}, {tile.warps} warps, {tile.stages} stages{', swapped' * tile.is_swapped}"
