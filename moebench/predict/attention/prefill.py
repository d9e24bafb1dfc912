"""Time of prefill attention: the new tokens of each sequence attend causally to all before them.

A thread block takes a tile of queries and goes through the tiles of keys that it may see. What
binds is the products, the exponentials of the softmax, or reading and writing the operands.
"""

from dataclasses import dataclass

import numpy as np

from moebench.predict.arrays import Floats, Mask
from moebench.predict.attention.calls import PrefillCalls
from moebench.predict.attention.kernels import AttentionKernel, kernel
from moebench.predict.attention.rates import norm, product_rate
from moebench.predict.attention.splits import MARGIN, NEARLY_FULL, tiles_of
from moebench.predict.kernels.layer import processor
from moebench.predict.operations.operation import Operation
from moebench.predict.parameters import parameter
from moebench.spec.hardware import HardwareSpec

ELEMENT = 2
"""Bytes of a query or an output: bfloat16."""
PARTIAL = 8
"""Bytes of a partial output written and read again: fp32."""
LEAST_PART = 128
"""Keys of a part at least, where few tiles leave multiprocessors free."""
FEW_STEPS = 4
"""Key tiles up to which FlashAttention 3 does not part keys."""


@dataclass(frozen=True)
class PrefillParameters:
    """Parameters of one prefill attention kernel on one device.

    What is a chain of instructions takes as many clocks on any device.
    """

    start: float = parameter(14000.0, 0.5, "clock")
    """Start and end of the call, with the small kernels around it."""
    sequence: float = parameter(17.0, 1.0, "clock")
    """Each sequence of the batch: its entry in the schedule and the page table."""
    bandwidth: float = parameter(0.85, 0.1, "", ceiling=1.0)
    """Share of the datasheet's bandwidth."""
    traffic: float = parameter(1.1, 0.4, "")
    """Bytes of queries and outputs moved, over the least."""
    cache_passes: float = parameter(0.7, 1.3, "B")
    """Bytes moved by kernels around, for each number of the new keys and values: writing the cache,
    casting it."""
    query_passes: float = parameter(0.5, 1.3, "B")
    """Bytes moved by kernels around for each number of queries and outputs: rope, casts."""
    l2_port: float = parameter(32.0, 0.5, "B/clock")
    """L2 to each multiprocessor, for operands that L2 holds (warm)."""
    retention: float = parameter(0.6, 0.4, "")
    """Share of L2 that replayed operands can occupy (warm)."""
    sharpness: float = parameter(6.0, 0.4, "")
    """How abruptly operands fall out of L2 when they exceed that share (warm)."""
    tile: float = parameter(128.0, 0.3, "keys")
    """Keys of one step of a block, with heads 128 wide; half a tile is computed in vain."""
    tile_width: float = parameter(0.2, 0.4, "")
    """Exponent by which tiles have fewer keys where heads are wider than 128."""
    tensor: float = parameter(0.65, 0.3, "", ceiling=1.0)
    """Share of the datasheet's tensor peak for bfloat16 products."""
    wide: float = parameter(1.0, 0.3, "")
    """Factor on products and softmax with heads twice as wide as 128."""
    narrow: float = parameter(1.0, 0.3, "")
    """Factor on products and softmax with heads half as wide as 128."""
    float8: float = parameter(0.8, 0.3, "", ceiling=1.0)
    """Further share where products take fp8 operands, of the fp8 peak."""
    exponentials: float = parameter(14.0, 0.5, "1/clock")
    """Scores that one multiprocessor takes through the softmax in a clock."""
    together: float = parameter(3.0, 0.5, "")
    """Exponent of the norm over products and exponentials, which other warps may hide."""
    step: float = parameter(170.0, 1.0, "clock")
    """One step of a block beyond both: synchronisation."""
    block: float = parameter(3500.0, 0.7, "clock")
    """Start and end of one block: its queries and outputs."""
    resident: float = parameter(1.2, 0.4, "")
    """Blocks of one multiprocessor at a time."""
    imbalance: float = parameter(0.7, 0.6, "")
    """Exponent, less one, of the norm over a multiprocessor's even share and the longest tile."""
    overlap: float = parameter(1.0, 0.6, "")
    """Exponent, less one, of the norm over computing and moving."""
    partials: float = parameter(1.0, 0.4, "")
    """Bytes of partial outputs over the least, where keys are parted."""
    merge: float = parameter(3500.0, 0.6, "clock")
    """Kernel that adds up the parts."""


@dataclass(frozen=True)
class _Tiles:
    """Tiles of queries and what they see; arrays over calls."""

    count: Floats
    rows: Floats
    mean: Floats
    """Keys that a tile sees on average."""
    longest: Floats
    """Keys that one block goes through at most."""
    is_parted: Mask
    """Whether keys of a tile are parted over blocks."""


def prefill_time(
    p: PrefillParameters, hardware: HardwareSpec, calls: PrefillCalls, warm: bool = False
) -> Floats:
    """Seconds of prefill attention calls of one layer on one rank.

    `warm`: a benchmark's replays leave operands in L2 as far as they fit; False: all from DRAM.
    """
    clock, _ = processor(hardware)
    sms = hardware.num_processors
    stream = hardware.memory_bandwidth * p.bandwidth
    widths = calls.head_dim + calls.value_dim
    tile = p.tile * (128 / calls.head_dim) ** p.tile_width
    tiles = _tiles(kernel(calls.kernel), calls, tile, sms)
    products = 2 * widths * sms / product_rate(p.tensor, p.float8, hardware, calls.kv_bytes)
    softmax = 1 / (clock * p.exponentials)
    row = norm(p.together, products, np.full_like(products, softmax))
    doublings = np.log2(calls.head_dim / 128)
    row = row * p.wide ** np.maximum(doublings, 0) * p.narrow ** np.maximum(-doublings, 0)
    key = tiles.rows * row + p.step / clock / tile
    places = sms * p.resident
    shared = np.clip(tiles.count / sms, 1, p.resident)
    uneven = 1 + p.imbalance
    longest = tiles.longest * shared
    computing = key * norm(uneven, tiles.count / sms * tiles.mean, longest)
    blocks = p.block / clock * norm(uneven, tiles.count / places, np.ones_like(key))
    tokens = calls.batch * calls.tokens
    queries = tokens * calls.heads * widths
    cached = calls.batch * _keys_read(calls) * calls.kv_heads * widths
    moved = ELEMENT * p.traffic * queries + calls.kv_bytes * cached
    hit = 1 / (1 + (moved / (p.retention * hardware.cache)) ** p.sharpness) if warm else 0.0
    moving = moved * ((1 - hit) / stream + hit / (sms * p.l2_port * clock))
    partial = p.partials * PARTIAL * tokens * calls.heads * calls.value_dim / stream
    around = p.cache_passes * tokens * calls.kv_heads * widths + p.query_passes * queries
    start = p.start + calls.batch * p.sequence + tiles.is_parted * p.merge
    body = norm(1 + p.overlap, computing, moving) + blocks
    return np.asarray(start / clock + body + tiles.is_parted * partial + around / stream)


def _keys_read(calls: PrefillCalls) -> Floats:
    """Keys that any token of a sequence sees."""
    keys = calls.tokens + calls.prefix
    return np.where(calls.window > 0, np.minimum(keys, calls.tokens + calls.window), keys)


def _tiles(rules: AttentionKernel, calls: PrefillCalls, tile: Floats, sms: int) -> _Tiles:
    """Tiles of queries by the kernel's rules, and the keys they see; `tile` keys in a step."""
    group = calls.heads / calls.kv_heads
    packed = group if rules.packs else np.ones_like(group)
    rows, count = tiles_of(calls.tokens * packed, rules.query_rows)
    count = calls.batch * (calls.kv_heads if rules.packs else calls.heads) * count
    own = np.minimum(rows / packed, calls.tokens)
    keys = calls.tokens + calls.prefix
    is_windowed = (calls.window > 0) & (calls.window < keys) & rules.cuts_prefill
    # Tiles beyond the diagonal are computed whole: half of one on average, on either side.
    ahead = (own + tile) / 2
    full = np.ceil(keys / tile) * tile
    growing = np.clip(calls.window - calls.prefix, 0, calls.tokens)
    of_window = growing * (calls.prefix + growing / 2) + (calls.tokens - growing) * calls.window
    mean = np.where(is_windowed, of_window / calls.tokens, calls.prefix + calls.tokens / 2)
    mean = np.minimum(full, mean + ahead)
    longest = np.where(is_windowed, np.minimum(full, calls.window + own + tile / 2), full)
    is_parted, part = _parts(rules, calls, count, full / tile, sms)
    longest = np.where(is_parted, np.minimum(longest, part * tile), longest)
    return _Tiles(count, rows, mean, longest, is_parted)


def _parts(
    rules: AttentionKernel, calls: PrefillCalls, count: Floats, steps: Floats, sms: int
) -> tuple[Mask, Floats]:
    """Whether keys are parted, and key tiles of a part; `count` tiles of queries, `steps` each."""
    if rules.prefill_split == "margin":
        is_parted = (count / calls.batch < NEARLY_FULL * sms) & (steps > FEW_STEPS)
        part = np.ceil(MARGIN * count * steps / sms)
        return is_parted & (calls.batch <= rules.most_scheduled), np.maximum(1, part)
    if rules.prefill_split == "fill":
        free = np.floor(rules.slots * sms / count)
        is_long = calls.tokens + calls.prefix > 2 * LEAST_PART
        return (free > 1) & is_long, np.ceil(steps / np.maximum(free, 1))
    return np.zeros(len(calls), dtype=bool), steps


PREFILL = Operation("attention-prefill", PrefillParameters, prefill_time)
