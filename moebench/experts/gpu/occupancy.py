"""How many programs of a kernel one multiprocessor holds, by NVIDIA's documented limits.

**Source**: limits by CUDA C++ Programming Guide, "Technical Specifications per Compute
Capability"; tensor memory (512 columns a multiprocessor) by the PTX ISA, "Tensor Memory"; how
registers and shared memory are handed out by NVIDIA's cuda_occupancy.h, against which a test
holds this file.
"""

from dataclasses import dataclass

KIB = 1024
WARP = 32
PARTITIONS = 4
"""Schedulers of a multiprocessor; each has a quarter of the registers."""
REGISTERS = 64 * KIB
"""Of 32 bits, a multiprocessor; of every capability here."""
REGISTER_UNIT = 256
"""Registers are given to a warp in units of so many."""
SHARED_UNIT = 128
SHARED_RESERVED = KIB
"""Bytes of shared memory that the system takes for each resident block."""


@dataclass(frozen=True)
class Limits:
    """What one multiprocessor of a compute capability holds."""

    warps: int
    blocks: int
    shared_bytes: int
    shared_bytes_per_block: int
    """Most that one block may ask for; the reserved bytes are not part of it."""
    tensor_memory_columns: int | None = None
    """Blackwell's memory for accumulators; None: there is none."""


LIMITS = {
    80: Limits(64, 32, 164 * KIB, 163 * KIB),
    86: Limits(48, 16, 100 * KIB, 99 * KIB),
    89: Limits(48, 24, 100 * KIB, 99 * KIB),
    90: Limits(64, 32, 228 * KIB, 227 * KIB),
    100: Limits(64, 32, 228 * KIB, 227 * KIB, tensor_memory_columns=512),
    120: Limits(48, 24, 100 * KIB, 99 * KIB),
}
"""By compute capability, 90 for 9.0."""


@dataclass(frozen=True)
class Occupancy:
    """Resident blocks of a kernel."""

    blocks: int
    warps: int
    """Of these blocks together."""
    share: float
    """Of the warps that the multiprocessor could hold."""
    bound: str
    """What runs out first."""


def occupancy(
    capability: int, warps: int, registers: int, shared_bytes: int, tensor_memory_columns: int = 0
) -> Occupancy:
    """Resident blocks of a kernel on one multiprocessor; 0 where not even one fits.

    Args:
        capability: a key of `LIMITS`.
        warps: of a block.
        registers: of a thread.
        shared_bytes: of a block, static and dynamic.
        tensor_memory_columns: of a block.
    """
    limits = LIMITS[capability]
    registers_per_warp = _round_up(registers * WARP, REGISTER_UNIT)
    warps_with_registers = PARTITIONS * (REGISTERS // PARTITIONS // registers_per_warp)
    # A launch is refused as if a block took as many registers in each partition.
    is_launched = registers_per_warp * _round_up(warps, PARTITIONS) <= REGISTERS
    shared = _round_up(shared_bytes + SHARED_RESERVED, SHARED_UNIT)
    fitting = {
        "registers": warps_with_registers // warps if is_launched else 0,
        "shared memory": limits.shared_bytes // shared,
        "warps": limits.warps // warps,
        "blocks": limits.blocks,
    }
    if shared_bytes > limits.shared_bytes_per_block:
        fitting["shared memory"] = 0
    if limits.tensor_memory_columns is not None and tensor_memory_columns:
        fitting["tensor memory"] = limits.tensor_memory_columns // tensor_memory_columns
    bound = min(fitting, key=lambda name: fitting[name])
    blocks = fitting[bound]
    return Occupancy(blocks, blocks * warps, blocks * warps / limits.warps, bound)


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
