"""The latency of one MoE layer on a GPU, from its shape, its load, its tiles and a spec sheet.

Each of the two grouped matmuls costs the p-norm of four times that overlap imperfectly: tensor
cores, L2 to SM traffic, DRAM traffic, and the latency of a chain of thread blocks. Around them
stand launches, the traffic of the elementwise kernels and the cost of sorting token copies. The
weights that a call touches come from DRAM, or, when a benchmark replays the same call, partly
from L2: that is `warm`, off in every prediction for deployment. Sizes are in bytes, times in
seconds; every function works on arrays over cases.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from moebench.predict.arrays import Floats, Mask, OverCases
from moebench.predict.kernels.loads import BLOCK_ROWS, Loads
from moebench.predict.kernels.parameters import Parameters
from moebench.predict.kernels.tiles import Tiles
from moebench.predict.kernels.weights import OPERAND_BYTES
from moebench.spec.hardware import HardwareSpec

ACTIVATION_BYTES = 2
"""Activations are bfloat16 in every measured kernel; fp8 kernels quantise them on the way in."""
REGISTERS = 65536
"""32-bit registers of one streaming multiprocessor, every NVIDIA generation since Kepler."""
WARP = 32
ADDRESSING_REGISTERS = 48
"""Registers of a thread besides its accumulator."""
UNPIPELINED_REGISTERS = 64
"""Registers of a thread whose operands pass through registers, besides operands and accumulator."""
ALIGNMENT = 16
"""Elements: Triton vectorises loads of rows whose stride it knows to be a multiple of this."""
SECTOR_DEPTH = 32
"""Elements of a row in one step that fill only half of a 128-byte line."""
SCALE_GROUP = 128
"""Activations of a token that share a scale where weights are scaled in blocks of 128 x 128."""
CHUNK = 32768
"""Cases priced at a time, so that temporaries stay in cache."""


@dataclass(frozen=True)
class LayerCalls(OverCases):
    """Calls of one MoE layer on one rank; arrays over cases."""

    num_tokens: Floats
    """Tokens that enter the layer, before expert parallelism."""
    hidden_size: Floats
    inner_size: Floats
    """Intermediate size of the rank."""
    top_k: Floats
    num_experts: Floats
    """Experts of the whole layer."""
    expert_parallel: Floats
    """Ranks that share the experts."""
    delivered: Floats | None = field(default=None, kw_only=True)
    """Token rows that reach the rank's kernel; None: every token, as in all measured tables."""
    delivered_copies: Floats | None = field(default=None, kw_only=True)
    """Slots of those rows, of this rank's experts or not; None: T k."""


@dataclass(frozen=True)
class LayerCases(LayerCalls):
    """Calls of a layer as one kernel runs them; arrays over cases."""

    matrices: int
    """3 for gated experts, 2 otherwise."""
    loads: Loads
    tiles: Tiles
    dtype: str
    """Dtype of the operands on the tensor cores; any but bfloat16 means quantised activations."""
    weight_bytes: float
    """Bytes of a weight in memory, with its share of a scale."""
    can_skip_sort: bool
    """vllm sorts nothing when 4 T k is at most N and there is no expert map."""
    handles_all_copies: bool
    """Under expert parallelism vllm's Triton path activates, clears and sums all slots of the rows
    that it gets, T k where it gets every token."""
    loads_by_element: bool
    """Rows whose stride is no multiple of `ALIGNMENT` are loaded without vectors (Triton; others
    need 16 bytes alone, or pad)."""
    permutes_copies: bool
    """Token copies are sorted by expert before the first matmul and quantised one by one; otherwise
    that matmul gathers tokens, quantised once each."""
    uses_tensor_memory: bool
    """Tiles of 64 rows and more accumulate in tensor memory (Triton on compute capability 10)."""


@dataclass(frozen=True)
class LayerTime(OverCases):
    """Predicted seconds of each case, and what they are made of."""

    seconds: Floats
    stages: Mapping[str, Floats]
    """Launches, first and second matmul, elementwise traffic, routing; they add up."""
    terms: Mapping[str, Floats]
    """Tensor cores, DRAM, L2 and block latency of both matmuls, before they overlap."""


def layer_time(
    parameters: Parameters, hardware: HardwareSpec, cases: LayerCases, warm: bool = False
) -> LayerTime:
    """Time of cases; if `warm`, weights that a benchmark's replays leave in L2 come from there."""
    if len(cases) <= CHUNK:
        return _layer_time(parameters, hardware, cases, warm)
    parts = (cases[start : start + CHUNK] for start in range(0, len(cases), CHUNK))
    return LayerTime.concatenate([_layer_time(parameters, hardware, p, warm) for p in parts])


def roofline(hardware: HardwareSpec, cases: LayerCases) -> Floats:
    """The least time that the same load can take: distinct weights once, or useful FLOPs."""
    weights = cases.matrices * cases.hidden_size * cases.inner_size
    memory = cases.weight_bytes * weights * cases.loads.distinct
    return np.maximum(
        memory / hardware.memory_bandwidth,
        2 * weights * cases.loads.copies / hardware.peak_for(cases.dtype),
    )


def processor(hardware: HardwareSpec) -> tuple[float, float]:
    """Clock in hertz and shared memory in bytes of one SM; an error if the spec sheet lacks one."""
    if hardware.clock is None or hardware.shared_memory is None:
        missing = "clock" if hardware.clock is None else "shared_memory"
        raise ValueError(f"{hardware.name}: {missing} is missing; the GPU model needs it")
    return hardware.clock, hardware.shared_memory


def _layer_time(p: Parameters, m: HardwareSpec, cases: LayerCases, warm: bool) -> LayerTime:
    tokens, hidden, inner = cases.num_tokens, cases.hidden_size, cases.inner_size
    copies, weight_bytes = cases.loads.copies, cases.weight_bytes
    is_parallel = cases.expert_parallel > 1
    rows = tokens if cases.delivered is None else cases.delivered
    slots = tokens * cases.top_k if cases.delivered_copies is None else cases.delivered_copies
    handled = np.where(is_parallel & cases.handles_all_copies, slots, copies)
    replayed = cases.loads.replayed * hidden * inner * cases.matrices * weight_bytes
    hit = warm / (1 + (replayed / (p.retention * m.cache)) ** 4)
    gated = cases.matrices - 1
    never = np.zeros(len(cases), dtype=bool)
    first = _Gemm(hidden, gated * inner, rows * hidden, handled, never, hit)
    is_misaligned = (inner % ALIGNMENT != 0) & cases.loads_by_element
    second = _Gemm(inner, hidden, copies * inner, handled, is_misaligned, hit)
    parts = [_grouped_matmul(p, m, cases, gemm) for gemm in (first, second)]
    chosen = (parts[0][0] + parts[1][0]).argmin(axis=1)[:, None]

    def pick(array: Floats) -> Floats:
        return np.take_along_axis(array, chosen, axis=1)[:, 0]

    stream = m.memory_bandwidth * p.bandwidth
    is_top1 = cases.top_k == 1
    is_small = 4 * tokens * cases.top_k <= cases.num_experts
    is_unsorted = cases.can_skip_sort & ~is_parallel & is_small
    moved = (cases.matrices * inner + hidden) * handled + hidden * rows
    stages = {
        "launch": p.launch
        + p.sort * ~is_unsorted
        + p.parallel * is_parallel
        + p.top1_launch * is_top1,
        "first matmul": pick(parts[0][0]),
        "second matmul": pick(parts[1][0]),
        "elementwise": ACTIVATION_BYTES * p.activation_traffic * moved / stream
        + is_top1 * p.top1_passes * 2 * ACTIVATION_BYTES * tokens * hidden / stream,
        "routing": p.copy * handled + p.expert * cases.num_experts / cases.expert_parallel,
    }
    if cases.dtype != "bfloat16":
        quantised = copies if cases.permutes_copies else rows
        groups = (quantised * hidden + copies * inner) / SCALE_GROUP
        clock, _ = processor(m)
        quantising = p.quantise * groups / (m.num_processors * clock)
        stages["elementwise"] = stages["elementwise"] + quantising
    terms = {name: pick(term) + pick(parts[1][1][name]) for name, term in parts[0][1].items()}
    total = np.sum(list(stages.values()), axis=0)
    return LayerTime(total, stages, terms)


@dataclass(frozen=True)
class _Gemm:
    depth: Floats
    columns: Floats
    input_elements: Floats
    """Elements of the distinct rows that the whole call reads."""
    handled: Floats
    """Token copies whose outputs are written."""
    is_misaligned: Mask
    hit: Floats
    """Share of the weights that come from L2."""


def _grouped_matmul(
    p: Parameters, m: HardwareSpec, cases: LayerCases, gemm: _Gemm
) -> tuple[Floats, dict[str, Floats]]:
    """Seconds of one grouped matmul and its four times; arrays [cases, candidate tiles]."""
    tile, loads, sms = cases.tiles, cases.loads, m.num_processors
    clock, shared_memory = processor(m)
    operand_bytes, weight_bytes = OPERAND_BYTES[cases.dtype], cases.weight_bytes
    depth, columns, hit = (each[:, None] for each in (gemm.depth, gemm.columns, gemm.hit))
    copies, distinct = loads.copies[:, None], loads.distinct[:, None]
    rows = np.take_along_axis(loads.tiles, np.searchsorted(BLOCK_ROWS, tile.block_m), axis=1)
    threads = WARP * tile.warps
    accumulator = tile.block_m * tile.block_n / threads
    step_elements = (tile.block_m + tile.block_n) * tile.block_k
    step_bytes = (operand_bytes * tile.block_m + weight_bytes * tile.block_n) * tile.block_k

    column_tiles = np.ceil(columns / tile.block_n)
    blocks = rows * column_tiles
    steps = np.ceil(depth / tile.block_k)
    resident = np.minimum(
        shared_memory // (tile.stages * step_bytes),
        REGISTERS // (threads * (accumulator + ADDRESSING_REGISTERS)),
    )
    slots = sms * np.maximum(1, resident)
    waves = np.maximum(blocks, 1e-9) / slots
    felt_waves = waves + p.waves * (np.ceil(waves) - waves)

    one_block = 2 * (tile.block_m + p.fill_rows) * tile.block_n * steps * tile.block_k
    rate = m.peak_for(cases.dtype) * p.tensor
    tensor = np.maximum(blocks * one_block / rate * felt_waves / waves, one_block * sms / rate)

    # Loads without vectors cannot be copied asynchronously: only other blocks hide them, and the
    # pipeline's first loads are issued as well where the loop is shorter than the pipeline.
    loads_in_flight = np.maximum(tile.stages, 2) - 1
    elementwise_loads = step_elements / threads
    unpipelined = REGISTERS // (threads * (accumulator + elementwise_loads + UNPIPELINED_REGISTERS))
    misaligned = gemm.is_misaligned[:, None] * p.misaligned * elementwise_loads
    misaligned = misaligned / np.maximum(1, unpipelined) * (1 + loads_in_flight / steps)
    step_clocks = p.step + step_bytes / p.l2_port + misaligned
    l2 = blocks * steps * step_clocks / clock / sms

    # Row tiles walk the columns in groups; each further group streams the expert's weights again
    # unless they stayed in L2. Resident blocks beyond one column set widen a group by themselves.
    matrix = depth * columns * weight_bytes
    group = np.maximum(tile.group_m, slots / column_tiles)
    missed = 1 / (1 + (p.weight_retention * m.cache / matrix) ** 4)
    passes = 1 + np.maximum(rows / np.maximum(distinct, 1e-9) - 1, 0) / group * missed
    stream = m.memory_bandwidth * p.bandwidth
    weight_stream = stream * np.where(tile.block_k < 2 * SECTOR_DEPTH, p.narrow_rows, 1.0)
    l2_stream = np.maximum(p.l2_port * clock * sms, weight_stream)
    input_bytes = ACTIVATION_BYTES * gemm.input_elements[:, None]
    spilled = 1 / (1 + (m.cache / np.maximum(input_bytes, 1.0)) ** 2)
    activations = p.activation_traffic * (copies * depth + gemm.handled[:, None] * columns)
    activations = activations + p.reread * spilled * copies * depth * column_tiles
    dram = passes * distinct * matrix * ((1 - hit) / weight_stream + hit / l2_stream)
    dram = dram + ACTIVATION_BYTES * activations / stream

    in_memory = p.tensor_memory * (cases.uses_tensor_memory & (tile.block_m >= 64))
    trip = p.round_trip * (1 - hit + p.l2_round_trip * hit) / loads_in_flight
    latency = np.maximum(1, felt_waves) * (p.block + in_memory + steps * trip)

    norm = tensor**p.overlap + l2**p.overlap + dram**p.overlap + latency**p.overlap
    seconds = norm ** (1 / p.overlap) + p.gemm
    return seconds, {"tensor": tensor, "dram": dram, "l2": l2, "latency": latency}


def shape_label(hidden_size: float, inter_size: float, top_k: float, num_experts: float) -> str:
    """How fits and scores name a model shape: "4096 x 14336, 2 of 8"."""
    return f"{hidden_size:g} x {inter_size:g}, {top_k:g} of {num_experts:g}"
