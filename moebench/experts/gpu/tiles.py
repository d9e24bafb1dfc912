"""Tiles: how a device cuts the work of a ragged mixture of experts.

In *decode* an expert has a few rows, the kernel is bound by reading weights, and a row tile is as
small as the tensor cores take (16). In *prefill* a row tile is as large as the registers hold.

**The tiles are chosen by what the compiler reports** (no spills, shared memory, occupancy, see
`moebench.experts.gpu.report`) **and by reasoning; no GPU has timed them**, nor the border between
the two sets.
"""

from dataclasses import dataclass
from typing import Literal

TilePhase = Literal["decode", "prefill"]


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

    def depth(self, element_bytes: int) -> int:
        return self.depth_bytes // element_bytes

    def constants(self, element_bytes: int) -> dict[str, int]:
        """Compile-time constants of a kernel that runs this tile."""
        return {
            "BLOCK_M": self.rows,
            "BLOCK_N": self.columns,
            "BLOCK_K": self.depth(element_bytes),
            "GROUP": ROW_TILES_PER_GROUP,
        }


@dataclass(frozen=True)
class KernelTiles:
    """The tiles of both kernels."""

    up: KernelTile
    down: KernelTile


DECODE_SMALL = KernelTiles(KernelTile(16, 32, 256, 4, 3), KernelTile(16, 32, 256, 4, 4))
"""Decode tiles of which two programs fit the 100 KB of shared memory of a graphics chip."""
DECODE_LARGE = KernelTiles(KernelTile(16, 64, 256, 4, 4), KernelTile(16, 64, 256, 4, 4))
PREFILL_LARGE = KernelTiles(KernelTile(128, 128, 128, 8, 4), KernelTile(128, 128, 128, 8, 3))

TABLE: dict[int, dict[TilePhase, KernelTiles]] = {
    80: {
        "decode": KernelTiles(KernelTile(16, 64, 256, 4, 3), KernelTile(16, 64, 256, 4, 4)),
        "prefill": KernelTiles(KernelTile(128, 64, 128, 8, 3), KernelTile(128, 128, 128, 8, 4)),
    },
    86: {
        "decode": DECODE_SMALL,
        "prefill": KernelTiles(KernelTile(128, 64, 128, 8, 4), KernelTile(128, 64, 128, 8, 3)),
    },
    90: {"decode": DECODE_LARGE, "prefill": PREFILL_LARGE},
    100: {"decode": DECODE_LARGE, "prefill": PREFILL_LARGE},
    120: {
        "decode": DECODE_SMALL,
        "prefill": KernelTiles(KernelTile(128, 64, 128, 8, 4), KernelTile(128, 128, 128, 8, 4)),
    },
}
"""Tiles by compute capability (90 is 9.0): a device uses the newest row that is not beyond it."""

FLOAT32 = KernelTiles(KernelTile(32, 32, 64, 4, 3), KernelTile(32, 32, 64, 4, 3))
"""Tiles of fp32 everywhere: it does not use tensor cores, and larger tiles spill registers."""

DECODE_ROWS = 16
"""Mean assignments per expert up to which decode's tiles are used (one row tile); not timed."""

ROW_TILES_PER_GROUP = 8
"""Row tiles whose programs run side by side, so that they share weights in the L2 cache."""

FIRST_TMA_CAPABILITY = 90


def choose_phase(bound: int, num_experts: int) -> TilePhase:
    """Decode or prefill by the bound of assignments, since only the device knows their number."""
    return "decode" if bound <= DECODE_ROWS * num_experts else "prefill"


def choose_tiles(capability: int, phase: TilePhase, element_bytes: int) -> KernelTiles:
    """The tiles for a device and elements of 2 or 4 bytes; an error for too old a device."""
    rows = [row for row in TABLE if row <= capability]
    if not rows:
        raise ValueError(
            f"expert backend 'triton' needs compute capability {min(TABLE) / 10} or newer,"
            f" this device has {capability / 10}"
        )
    return FLOAT32 if element_bytes == 4 else TABLE[max(rows)][phase]


def row_tiles(bound: int, num_experts: int, rows: int) -> int:
    """The most row tiles that `bound` assignments over `num_experts` experts can need.

    Most are needed where as many experts as possible have one assignment, and one all others.
    """
    touched = min(bound, num_experts)
    return touched + (bound - touched) // rows
