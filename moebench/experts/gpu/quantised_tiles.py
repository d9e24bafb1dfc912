"""Tiles of the kernels that read packed weights, by the rows that a row tile has.

**Chosen by what the compiler reports (no spills, shared memory, tensor cores) and by reasoning; no
GPU has timed them.** Weights become numbers in registers, which takes more of these than a plain
product: where no tensor memory or wgmma holds the sums and operands, steps are shorter.
"""

from moebench.experts.gpu.tiles import KernelTile, KernelTiles

SHORT_STEPS = {
    16: KernelTiles(KernelTile(16, 64, 128, 4, 4), KernelTile(16, 64, 256, 4, 4)),
    32: KernelTiles(KernelTile(32, 64, 128, 4, 4), KernelTile(32, 64, 256, 4, 4)),
    64: KernelTiles(KernelTile(64, 64, 128, 4, 4), KernelTile(64, 64, 256, 8, 3)),
    128: KernelTiles(KernelTile(128, 32, 128, 8, 4), KernelTile(128, 64, 128, 8, 4)),
}
LONG_STEPS = {
    16: KernelTiles(KernelTile(16, 64, 256, 4, 4), KernelTile(16, 64, 256, 4, 4)),
    32: KernelTiles(KernelTile(32, 64, 256, 4, 4), KernelTile(32, 64, 256, 4, 4)),
    64: KernelTiles(KernelTile(64, 64, 256, 8, 3), KernelTile(64, 64, 256, 8, 3)),
    128: KernelTiles(KernelTile(128, 64, 256, 8, 3), KernelTile(128, 64, 256, 8, 3)),
}
FIRST_CONVERTING_CAPABILITY = 89
"""Devices from this one on convert e4m3 by an instruction."""


def quantised_tiles(capability: int, rows: int) -> KernelTiles:
    """The tiles of a device; steps are in bytes of x's rows in 16 bits."""
    return (LONG_STEPS if 90 <= capability < 120 else SHORT_STEPS)[rows]
