"""Tiles of the training kernels, by the rows that a row tile has; the same ones on every device.

**Chosen by what the compiler reports (no spills, at most 99 KB of shared memory, two blocks a
multiprocessor on an H100) and by reasoning; no GPU has timed them.** The gradient of a matrix has a
tile of the matrix and walks along an expert's rows; all other tiles have the rows of a row tile.
"""

from typing import NamedTuple

from moebench.experts.gpu.tiles import KernelTile


class TrainingTiles(NamedTuple):
    """The tile of each kernel; the first one computes two such tiles for gated experts."""

    up: KernelTile
    activation: KernelTile
    rows: KernelTile
    matrices: KernelTile


def training_tiles(rows: int, element_bytes: int) -> TrainingTiles:
    """The tiles for row tiles of 16 to 128 rows, and elements of 2 or 4 bytes.

    fp32 uses no tensor cores, and larger tiles spill registers.
    """
    if element_bytes == 4:
        warps = 4 if rows <= 32 else 8
        narrow, wide = (KernelTile(rows, columns, 64, warps, 3) for columns in (16, 32))
        return TrainingTiles(narrow, wide, wide, KernelTile(32, 32, 64, 4, 3))
    warps = 8 if rows == 128 else 4
    narrow, wide = (KernelTile(rows, columns, 128, warps, 3) for columns in (64, 128))
    return TrainingTiles(narrow, narrow, wide, KernelTile(128, 128, 128, 8, 3))


def constants(tile: KernelTile, element_bytes: int) -> dict[str, int]:
    """Compile-time constants of a training kernel, which knows no swapped operands."""
    values = tile.constants(element_bytes)
    return {name: values[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K", "GROUP")}
