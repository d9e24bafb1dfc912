"""Tiles: how a device cuts the work of a ragged mixture of experts.

How many rows a tile has is the routing's business (`moebench.routers.row_tiles`). Up to 32 rows the
kernels are bound by reading weights: tiles are small, two or more programs share a multiprocessor,
and the sum of the second matmul is split where the tiles alone would leave multiprocessors idle.
At 128 rows a tile is as large as the registers hold.

**The tiles are chosen by what the compiler reports** (no spills, shared memory, occupancy, see
`moebench.experts.gpu.report`) **and by reasoning; no GPU has timed them**, nor the split.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class KernelTile:
    """What one program of a kernel computes, and how."""

    rows: int
    columns: int
    """Columns of the result; the first kernel of gated experts computes two such tiles."""
    depth_bytes: int
    """Bytes of each row that one step along the inner dimension reads."""
    warps: int
    stages: int
    """Steps along the inner dimension that are in flight."""
    is_swapped: bool = False
    """Whether the weights are the left operand of the tensor cores, and the rows the right one."""

    is_persistent: bool = False
    """Whether each program computes several tiles, one after the other."""
    is_specialised: bool = False
    """Whether loads, products and stores have warps of their own."""
    gathers_by_tma: bool = False
    """Whether rows that lie apart come through TMA."""

    def depth(self, element_bytes: int) -> int:
        return self.depth_bytes // element_bytes

    def constants(self, element_bytes: int) -> dict[str, int]:
        """Compile-time constants of a kernel that runs this tile."""
        return {
            "BLOCK_M": self.rows,
            "BLOCK_N": self.columns,
            "BLOCK_K": self.depth(element_bytes),
            "SWAP": self.is_swapped,
            "PERSISTENT": self.is_persistent,
            "SPECIALISE": self.is_specialised,
            "GROUP": ROW_TILES_PER_GROUP,
        }


@dataclass(frozen=True)
class KernelTiles:
    """The tiles of both kernels that multiply."""

    up: KernelTile
    down: KernelTile


SMALL_SHARED_MEMORY = {
    16: KernelTiles(KernelTile(16, 64, 128, 4, 3, True), KernelTile(16, 64, 128, 4, 4, True)),
    32: KernelTiles(KernelTile(32, 64, 128, 4, 3, True), KernelTile(32, 32, 256, 4, 3, True)),
    64: KernelTiles(KernelTile(64, 64, 128, 4, 3), KernelTile(64, 64, 128, 4, 3)),
    128: KernelTiles(KernelTile(128, 64, 128, 8, 4), KernelTile(128, 64, 128, 8, 3)),
}
"""Tiles for the 100 KB of shared memory of a graphics chip."""
LARGE_SHARED_MEMORY = {
    16: KernelTiles(KernelTile(16, 64, 256, 4, 3, True), KernelTile(16, 64, 256, 4, 3, True)),
    32: KernelTiles(KernelTile(32, 64, 128, 4, 5, True), KernelTile(32, 64, 256, 4, 3, True)),
    64: KernelTiles(KernelTile(64, 64, 128, 4, 4), KernelTile(64, 128, 128, 4, 4)),
}
"""Tiles for the 228 KB of shared memory of a data centre's chip with TMA."""
HOPPER_128 = KernelTiles(
    KernelTile(128, 128, 128, 8, 4), KernelTile(128, 256, 128, 8, 3, is_persistent=True)
)
"""Its first kernel is not persistent: the compiler would then serialise wgmma (ptxas C7515)."""
BLACKWELL_128 = KernelTiles(
    KernelTile(128, 128, 128, 8, 3, is_persistent=True, gathers_by_tma=True),
    KernelTile(128, 256, 128, 8, 4, is_persistent=True, is_specialised=True),
)
"""Its first kernel has no warps of their own: Triton 3.7.1 fails on them, or registers spill."""

TABLE: dict[int, dict[int, KernelTiles]] = {
    80: {
        16: KernelTiles(KernelTile(16, 64, 256, 4, 3, True), KernelTile(16, 64, 256, 4, 4, True)),
        32: KernelTiles(KernelTile(32, 64, 256, 4, 3, True), KernelTile(32, 64, 256, 4, 3, True)),
        64: KernelTiles(KernelTile(64, 64, 128, 4, 3), KernelTile(64, 128, 128, 8, 3)),
        128: KernelTiles(KernelTile(128, 64, 128, 8, 3), KernelTile(128, 128, 128, 8, 4)),
    },
    86: SMALL_SHARED_MEMORY,
    90: LARGE_SHARED_MEMORY | {128: HOPPER_128},
    100: LARGE_SHARED_MEMORY | {128: BLACKWELL_128},
    120: SMALL_SHARED_MEMORY
    | {128: KernelTiles(KernelTile(128, 64, 128, 8, 4), KernelTile(128, 128, 128, 8, 4))},
}
"""Tiles by compute capability (90 is 9.0) and rows: a device uses the newest row that is not beyond
it."""

FLOAT32 = {
    rows: KernelTiles(*[KernelTile(rows, 32, 64, 4 if rows <= 32 else 8, 3)] * 2)
    for rows in (16, 32, 64, 128)
}
"""Tiles of fp32 everywhere: it does not use tensor cores, and larger tiles spill registers."""

ROW_TILES_PER_GROUP = 8
"""Row tiles whose programs run side by side, so that they share weights in the L2 cache."""

FIRST_TMA_CAPABILITY = 90
NO_TMA_CAPABILITY = 89
"""Capability whose tiles are used for matrices that TMA cannot read."""
FIRST_PDL_CAPABILITY = 90

COMBINED_COLUMNS = 1024
"""Columns of a program that combines: 16 bytes of bf16 for each of its threads."""
COMBINE_WARPS = 4
COMBINED_SLOTS = 8
"""Most slots of a token that are loaded at once."""

PROGRAMS_PER_MULTIPROCESSOR = 2
MOST_PARTS = 8
LEAST_STEPS = 4
"""Steps along the inner dimension of a part: fewer would not fill its stages."""


def choose_tiles(capability: int, rows: int, element_bytes: int) -> KernelTiles:
    """The tiles for a device and elements of 2 or 4 bytes; an error for too old a device."""
    known = [row for row in TABLE if row <= capability]
    if not known:
        raise ValueError(
            f"expert backend 'triton' needs compute capability {min(TABLE) / 10} or newer,"
            f" this device has {capability / 10}"
        )
    return (FLOAT32 if element_bytes == 4 else TABLE[max(known)])[rows]


def parts_of_sum(
    row_tiles: int,
    columns: int,
    steps: int,
    multiprocessors: int,
    programs: int = PROGRAMS_PER_MULTIPROCESSOR,
) -> int:
    """Parts into which the second matmul's sum is split: 1, 2, 4 or 8.

    As many as give each multiprocessor so many programs, if a part keeps steps enough.

    Args:
        columns: Column tiles.
        steps: Steps along the inner dimension.
    """
    wanted = programs * multiprocessors
    parts = 1
    while (
        parts < MOST_PARTS
        and row_tiles * columns * parts < wanted
        and steps >= 2 * parts * LEAST_STEPS
    ):
        parts *= 2
    return parts
