"""Time of decode attention: one new token of each sequence attends to its cached keys.

Thread blocks read tiles of keys for a group of query heads; a kernel parts the keys of a sequence
over several blocks and adds their results up. What binds is DRAM, the rate of a single block, the
tensor cores, or the chain of steps of the most loaded multiprocessor.
"""

from dataclasses import dataclass

import numpy as np

from moebench.predict.arrays import Floats
from moebench.predict.attention.calls import DecodeCalls
from moebench.predict.attention.kernels import kernel
from moebench.predict.attention.rates import norm, product_rate
from moebench.predict.attention.splits import Parts, parts_of
from moebench.predict.kernels.layer import processor
from moebench.predict.operations.operation import Operation
from moebench.predict.parameters import parameter
from moebench.spec.hardware import HardwareSpec

OUTPUT = 2
"""Bytes of a query or an output: bfloat16."""
GRANULE = 16
"""Keys that a tensor-core instruction takes at a time."""


@dataclass(frozen=True)
class DecodeParameters:
    """Parameters of one decode attention kernel on one device.

    What is a chain of instructions takes as many clocks on any device.
    """

    start: float = parameter(14000.0, 0.5, "clock")
    """Start and end of the call, with the small kernels around it."""
    sequence: float = parameter(7.0, 1.0, "clock")
    """Each sequence of the batch: its entry in the schedule and the page table."""
    bandwidth: float = parameter(0.9, 0.08, "", ceiling=1.0)
    """Share of the datasheet's bandwidth that streaming the cache reaches."""
    block_port: float = parameter(40.0, 0.5, "B/clock")
    """Bytes that one block loads, at most."""
    l2_port: float = parameter(32.0, 0.5, "B/clock")
    """L2 to each multiprocessor, when all of them read a cache that L2 holds (warm)."""
    retention: float = parameter(0.8, 0.3, "")
    """Share of L2 that a replayed cache can occupy (warm)."""
    sharpness: float = parameter(8.0, 0.4, "")
    """How abruptly a cache falls out of L2 when it exceeds that share (warm)."""
    page: float = parameter(16.0, 1.0, "keys")
    """Keys that are read at least: a page of the cache."""
    tile: float = parameter(128.0, 0.2, "keys")
    """Keys of one step of a block, with heads 128 wide."""
    tile_width: float = parameter(0.3, 0.5, "")
    """Exponent by which tiles have fewer keys where heads are wider than 128."""
    tensor: float = parameter(0.5, 0.4, "", ceiling=1.0)
    """Share of the datasheet's tensor peak for bfloat16 products; narrow tiles reach little."""
    float8: float = parameter(0.5, 0.4, "", ceiling=1.0)
    """Further share where products take fp8 operands, of the fp8 peak."""
    step: float = parameter(500.0, 0.8, "clock")
    """One step of a block beyond its loads and products: softmax and synchronisation."""
    block: float = parameter(3500.0, 0.7, "clock")
    """Start and end of one block: its schedule, its queries, its first load."""
    parting_block: float = parameter(1.4, 0.3, "")
    """Factor on a block of a kernel that could part keys over a planned schedule."""
    resident: float = parameter(1.2, 0.4, "")
    """Blocks of one multiprocessor at a time."""
    last_wave: float = parameter(0.5, 0.6, "", ceiling=1.0)
    """Share of the last wave's idle time that is felt."""
    overlap: float = parameter(3.0, 0.3, "")
    """Exponent of the norm over loads, products and steps."""
    block_overlap: float = parameter(0.3, 0.6, "")
    """Exponent, less one, of the norm over those and the blocks' starts and ends."""
    merge: float = parameter(2700.0, 0.7, "clock")
    """Kernel that adds up the parts of sequences, where there are any."""
    part: float = parameter(50.0, 0.8, "clock")
    """Each part in that kernel."""
    regroup: float = parameter(7000.0, 0.5, "clock")
    """Kernel that puts the heads of groups back in order, where there is one."""


def decode_time(
    p: DecodeParameters, hardware: HardwareSpec, calls: DecodeCalls, warm: bool = False
) -> Floats:
    """Seconds of decode attention calls of one layer on one rank.

    `warm`: a benchmark's replays leave the cache in L2 as far as it fits; False: all from DRAM.
    """
    rules = kernel(calls.kernel)
    clock, _ = processor(hardware)
    sms = hardware.num_processors
    stream = hardware.memory_bandwidth * p.bandwidth
    widths = calls.head_dim + calls.value_dim
    tile = p.tile * (128 / calls.head_dim) ** p.tile_width
    if rules.tiles:
        limits = [calls.head_dim <= 64, calls.head_dim <= 128]
        tile = np.select(limits, rules.tiles[:2], rules.tiles[2]).astype(float)
    parts = parts_of(rules, calls, tile, sms)
    waves = _waves(p, parts, sms)
    # Blocks on a multiprocessor share its tensor cores.
    shared = np.clip(parts.blocks / sms, 1, p.resident)
    keys = np.maximum(parts.keys, p.page)
    cache = calls.kv_bytes * calls.batch * keys * calls.kv_heads * widths
    hit = 1 / (1 + (cache / (p.retention * hardware.cache)) ** p.sharpness) if warm else 0.0
    l2 = sms * p.l2_port * clock
    memory = cache * ((1 - hit) / stream + (hit + parts.readings - 1) / l2)
    steps = waves * parts.steps
    of_block = waves * np.minimum(parts.steps * tile, keys)
    port = of_block * calls.kv_bytes * widths / (p.block_port * clock)
    rate = product_rate(p.tensor, p.float8, hardware, calls.kv_bytes) / sms
    multiplied = parts.steps * tile
    if not rules.whole_tiles:
        multiplied = np.minimum(multiplied, np.ceil(parts.keys / GRANULE) * GRANULE)
    products = waves * multiplied * shared * parts.rows * 2 * widths / rate
    working = norm(p.overlap, memory, port, products, steps * p.step / clock)
    is_planned = calls.batch <= rules.most_scheduled
    is_parting = is_planned & np.isfinite(rules.most_scheduled)
    blocks = p.block / clock * np.where(is_parting, p.parting_block, 1.0) * waves
    body = norm(1 + p.block_overlap, working, blocks)
    outputs = OUTPUT * calls.batch * calls.heads * widths / stream
    merge = (parts.count > 1) * (p.merge + parts.count * p.part)
    start = p.start + calls.batch * p.sequence + merge + parts.is_regrouped * p.regroup
    return np.asarray(start / clock + body + outputs)


def _waves(p: DecodeParameters, parts: Parts, sms: int) -> Floats:
    """Turns of the most loaded place for a block; a part of the last turn's idle time counts."""
    waves = parts.blocks / (sms * p.resident)
    return np.where(waves <= 1, 1.0, waves + (np.ceil(waves) - waves) * p.last_wave)


DECODE = Operation("attention-decode", DecodeParameters, decode_time)
