"""How many programs of a kernel one multiprocessor holds, by NVIDIA's documented limits.

**Source**: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"; PTX ISA,
"Tensor Memory" (512 columns a multiprocessor); for the allocation of registers and shared memory
NVIDIA's cuda_occupancy.h, against which a test checks this file.
"""

from dataclasses import dataclass

KIB = 1024
WARP = 32
PARTITIONS = 4
"""Schedulers of a multiprocessor; each has a quarter of the registers."""
REGISTERS = 64 * KIB
"""Registers of 32 bits that a multiprocessor has, of every capability here."""
REGISTER_UNIT = 256
"""Registers are allocated to a warp in multiples of this."""
SHARED_UNIT = 128
"""Bytes of shared memory are allocated to a block in multiples of this."""
SHARED_RESERVED = KIB
"""Bytes of shared memory that the system takes for each resident block."""


@dataclass(frozen=True)
class SmLimits:
    """What one multiprocessor of a compute capability holds."""

    warps: int
    blocks: int
    shared_bytes: int
    shared_bytes_per_block: int
    """Largest shared memory of one block, without the reserved bytes."""
    tensor_memory_columns: int | None = None
    """Columns of Blackwell's memory for accumulators; None: there is no such memory."""


LIMITS = {
    80: SmLimits(64, 32, 164 * KIB, 163 * KIB),
    86: SmLimits(48, 16, 100 * KIB, 99 * KIB),
    89: SmLimits(48, 24, 100 * KIB, 99 * KIB),
    90: SmLimits(64, 32, 228 * KIB, 227 * KIB),
    100: SmLimits(64, 32, 228 * KIB, 227 * KIB, tensor_memory_columns=512),
    120: SmLimits(48, 24, 100 * KIB, 99 * KIB),
}
"""Limits by compute capability, 90 for 9.0."""


@dataclass(frozen=True)
class Occupancy:
    """Resident blocks of a kernel."""

    blocks: int
    share: float
    """Resident warps over the most that the multiprocessor could hold."""
    bound: str
    """The resource that runs out first."""


def occupancy(
    capability: int, warps: int, registers: int, shared_bytes: int, tensor_memory_columns: int = 0
) -> Occupancy:
    """Blocks that one multiprocessor holds; `registers` are a thread's, all else is a block's."""
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
    return Occupancy(blocks, blocks * warps / limits.warps, bound)


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
