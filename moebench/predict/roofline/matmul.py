"""The time of one grouped matmul, from its tiles and from what one multiprocessor holds.

A kernel's programs run in waves, as many at once as the multiprocessors hold. A wave takes the
longest of four times: DRAM's, L2's, the tensor cores', and that of loads in flight, which by
Little's law move (bytes in flight) / (latency) bytes a second. Around them stand a launch, the
first program's start and the last one's end.
"""

import math
from dataclasses import dataclass

from moebench.predict.roofline.assumptions import Assumptions
from moebench.predict.roofline.compiled import CompiledTile
from moebench.spec.hardware import HardwareSpec

ELEMENT = 2
"""Bytes of bf16."""
BOUNDS = ("DRAM", "L2", "tensor cores", "loads in flight")
GROUP = 8
"""Row tiles whose programs run side by side and share an expert's weights in L2."""


@dataclass(frozen=True)
class GroupedMatmul:
    """Rows of each expert times that expert's matrix, as one launch of a kernel."""

    tile: CompiledTile
    depth: int
    """Inner dimension."""
    columns: int
    """Columns of the result; half of the matrix's for gate and up in one kernel."""
    row_tiles: float
    """Row tiles of all experts, expected."""
    experts: float
    """Experts that have rows, expected."""
    rows: float
    """Assignments."""
    distinct_rows: float
    """Different rows of the input among them: tokens before the first matmul."""
    parts: int = 1
    """Programs that share the sum of one tile of the result."""

    @property
    def column_tiles(self) -> int:
        return math.ceil(self.columns / self.tile.columns)

    @property
    def programs(self) -> float:
        return self.row_tiles * self.column_tiles * self.parts

    @property
    def steps(self) -> int:
        return math.ceil(self.depth / self.tile.depth / self.parts)

    @property
    def stage_bytes(self) -> int:
        """Bytes that one step loads: rows, and one or two tiles of weights."""
        tile = self.tile
        return ELEMENT * tile.depth * (tile.rows + tile.products * tile.columns)

    @property
    def weight_bytes(self) -> float:
        """Bytes of the weights of all experts that have rows."""
        matrix = ELEMENT * self.depth * self.columns * self.tile.products
        return self.experts * matrix

    def moved_bytes(self, cache: float) -> float:
        """Bytes from and to DRAM; weights come again for every group of row tiles that L2 lost."""
        matrix = self.weight_bytes / self.experts
        again = math.ceil(self.row_tiles / self.experts / GROUP) if matrix > cache / 2 else 1
        result = self.rows * self.columns * self.parts
        return again * self.weight_bytes + ELEMENT * (self.distinct_rows * self.depth + result)

    @property
    def flops(self) -> float:
        """FLOPs with the padding of tiles."""
        tile = self.tile
        one = 2 * tile.rows * tile.columns * tile.products * self.steps * tile.depth
        return self.programs * one


@dataclass(frozen=True)
class MatmulTime:
    """Seconds of one launch, and what they are made of."""

    seconds: float
    waves: float
    """Programs over those that all multiprocessors hold."""
    bytes_in_flight: float
    """Bytes that one multiprocessor has in flight in a full wave."""
    bound: str
    """The longest of the four times."""
    overhead: float
    """Seconds of the launch, the first program's start and the last one's end."""


def matmul_time(matmul: GroupedMatmul, device: HardwareSpec, assumed: Assumptions) -> MatmulTime:
    """Predicted time of one launch; weights come from DRAM."""
    tile, processors = matmul.tile, device.num_processors
    if device.clock is None:
        raise ValueError(f"{device.name}: clock is missing; the model of a kernel needs it")
    slots = processors * tile.blocks
    waves = matmul.programs / slots
    moved = matmul.moved_bytes(device.cache) / matmul.programs
    loaded = matmul.steps * matmul.stage_bytes
    from_dram = min(1.0, moved / loaded)
    latency = from_dram * assumed.dram_latency + (1 - from_dram) * assumed.l2_latency
    in_flight = min(tile.stages - 1, matmul.steps) * matmul.stage_bytes
    tensor_rate = device.peak_for("bfloat16") / processors
    tensor_rate *= assumed.tensor_share(tile.tensor_cores, tile.capability)
    seconds, times = 0.0, dict.fromkeys(BOUNDS, 0.0)
    for programs, repeats in _waves(matmul.programs, slots):
        together = math.ceil(programs / processors)
        each = {
            "DRAM": programs * moved / (device.memory_bandwidth * assumed.bandwidth),
            "L2": together * loaded / (assumed.l2_port * device.clock),
            "tensor cores": together * matmul.flops / matmul.programs / tensor_rate,
            "loads in flight": loaded * latency / in_flight,
        }
        seconds += repeats * max(each.values())
        for name in BOUNDS:
            times[name] += repeats * each[name]
    # A program reads its tile's place, then its rows' tokens, then the first step. Where a
    # multiprocessor holds one program, nothing hides that in later waves. A persistent program
    # starts once; its further tiles only wait for their loads.
    loads = 2 * assumed.l2_latency + assumed.dram_latency
    further = max(0, math.ceil(waves) - 1) * (tile.blocks == 1)
    start = assumed.block_start * (1 if tile.is_persistent else 1 + further) + loads * (1 + further)
    overhead = assumed.launch + start + assumed.l2_latency
    resident = min(tile.blocks, math.ceil(matmul.programs / processors))
    bound = max(times, key=lambda name: times[name])
    return MatmulTime(seconds + overhead, waves, resident * in_flight, bound, overhead)


def _waves(programs: float, slots: int) -> list[tuple[float, int]]:
    """Programs that run at once, and in how many waves: the full ones, then the rest."""
    full = int(programs // slots)
    rest = programs - full * slots
    return [(float(slots), full)] * (full > 0) + [(rest, 1)] * (rest > 0)
