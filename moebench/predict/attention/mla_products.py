"""Time of what surrounds attention in an MLA block: projections, other products, small kernels.

Matmuls are priced with the shipped parameters of dense matmuls on the device or its relatives.
"""

import dataclasses
import weakref
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moebench.predict.arrays import Floats, OverCases
from moebench.predict.kernels.dense import (
    DenseParameters,
    MatmulShapes,
    dense_parameters,
    dense_time,
    shipped_dense,
)
from moebench.predict.parameters import parameter
from moebench.spec.hardware import HardwareSpec
from moebench.spec.weight_types import stored_bytes

ELEMENT = 2
"""Bytes of a bfloat16 weight or activation."""
PROJECTIONS = 3
"""Projections with weights of the block's type: down, queries up, output."""
CAST = 3
"""Bytes that casting an activation to one byte moves: 2 read, 1 written."""
RESIDENT = 1e9
"""Retention of L2 under which every operand lies in it."""


@dataclass(frozen=True)
class ProductParameters:
    """Parameters of what surrounds attention in a block; SI units."""

    matmul: float = parameter(1.0, 0.15, "")
    """Time of bfloat16 matmuls over that of the device's dense library."""
    narrow_matmul: float = parameter(1.3, 0.4, "")
    """Time of matmuls in one byte or less, with their scales, over that of the dense library."""
    quantise: float = parameter(2e-6, 0.6, "s")
    """Start of casting one projection's activations to one byte or less, and of its scales."""
    elementwise: float = parameter(2.0, 0.6, "")
    """Times that norms, rotary embedding and copies move each token's activations."""
    weights_retention: float = parameter(0.6, 0.4, "")
    """Share of L2 that replayed weights and cache can occupy together."""


@dataclass(frozen=True, eq=False)
class MlaBlockCalls(OverCases):
    """MLA blocks on one rank; arrays over cases."""

    batch: Floats
    """Sequences."""
    new_tokens: Floats
    """New tokens of each sequence."""
    prefix: Floats
    """Cached keys of each sequence before its new tokens."""
    heads: Floats
    """Heads of the rank."""
    hidden_size: Floats
    query_rank: Floats
    """Rank of the query compression; 0: one full projection."""
    kv_rank: Floats
    """Width of a compressed vector."""
    plain_width: Floats
    """Width of a query or key head without its rotary part."""
    rope_width: Floats
    value_width: Floats
    """Width of a value head."""
    kv_bytes: Floats
    """Bytes of a cached number: 2 for bfloat16, 1 for fp8."""
    splits: Floats
    """1 where the kernel of absorbed attention parts long sequences, 0 where it does not."""
    weights: NDArray[np.str_]
    """Types of the projections' weights; that of the products around attention is bfloat16."""

    @property
    def tokens(self) -> Floats:
        return self.batch * self.new_tokens

    @property
    def query_width(self) -> Floats:
        """Width of all query heads of the rank."""
        return self.heads * (self.plain_width + self.rope_width)

    def projections(self) -> tuple[MatmulShapes, ...]:
        """Down, queries up, output; without a query rank the first two are one, the second none."""
        is_full = self.query_rank == 0
        down = np.where(is_full, self.query_width, self.query_rank) + self.kv_rank + self.rope_width
        up, rank = np.where(is_full, 0, self.query_width), np.maximum(1, self.query_rank)
        return (
            MatmulShapes(self.tokens, down, self.hidden_size),
            MatmulShapes(self.tokens, up, rank),
            MatmulShapes(self.tokens, self.hidden_size, self.heads * self.value_width),
        )

    def absorbed(self) -> tuple[MatmulShapes, ...]:
        """Queries into the compressed space, outputs out of it; each head has its own weights."""
        return (
            MatmulShapes(self.tokens, self.heads * self.kv_rank, self.plain_width),
            MatmulShapes(self.tokens, self.heads * self.value_width, self.kv_rank),
        )

    def expanded(self) -> tuple[MatmulShapes, ...]:
        """Keys and values of all heads, of the new tokens and of the prefix."""
        keys = self.batch * (self.prefix + self.new_tokens)
        return (
            MatmulShapes(keys, self.heads * (self.plain_width + self.value_width), self.kv_rank),
        )


@dataclass(frozen=True)
class BlockMatmuls:
    """Seconds of a block's matmuls by the device's dense library, whatever the software."""

    projections: Floats
    """With all operands in DRAM."""
    projections_in_l2: Floats
    further: Floats
    """Products around attention, with all operands in DRAM."""
    further_in_l2: Floats
    weight_bytes: Floats


_known: weakref.WeakKeyDictionary[MlaBlockCalls, tuple[HardwareSpec, bool, BlockMatmuls]] = (
    weakref.WeakKeyDictionary()
)


def block_matmuls(hardware: HardwareSpec, calls: MlaBlockCalls, is_absorbed: bool) -> BlockMatmuls:
    """Matmuls of blocks; a fit asks hundreds of times for the same, so the last ones are kept."""
    known = _known.get(calls)
    if known is not None and known[0] is hardware and known[1] == is_absorbed:
        return known[2]
    further = calls.absorbed() if is_absorbed else calls.expanded()
    dense, _ = dense_parameters(hardware, shipped_dense())
    machine, wide = with_narrow_peak(hardware), np.full(len(calls), "bfloat16")

    def total(shapes: tuple[MatmulShapes, ...], weights: NDArray[np.str_], in_l2: bool) -> Floats:
        each = [_seconds(dense, machine, one, weights, in_l2) for one in shapes]
        return np.asarray(np.sum(each, axis=0))

    own, weights = calls.projections(), calls.weights
    stored = np.array([stored_bytes(name) for name in weights.tolist()])
    sizes = [stored * m.n * m.k for m in own] + [ELEMENT * m.n * m.k for m in further]
    found = BlockMatmuls(
        total(own, weights, False),
        total(own, weights, True),
        total(further, wide, False),
        total(further, wide, True),
        np.sum(sizes, axis=0),
    )
    _known[calls] = hardware, is_absorbed, found
    return found


def _seconds(
    dense: DenseParameters,
    hardware: HardwareSpec,
    shapes: MatmulShapes,
    weights: NDArray[np.str_],
    in_l2: bool,
) -> Floats:
    """Seconds of one matmul, 0 where it has no columns; from L2 it is never slower."""
    found = np.zeros(len(shapes))
    for dtype in set(weights.tolist()):
        here = (weights == dtype) & (shapes.n > 0)
        seconds = dense_time(dense, hardware, shapes[here], dtype, warm=False)
        if in_l2:
            resident = dataclasses.replace(dense, retention=RESIDENT)
            hot = dense_time(resident, hardware, shapes[here], dtype, warm=True)
            seconds = np.minimum(seconds, hot)
        found[here] = seconds
    return found


def with_narrow_peak(hardware: HardwareSpec) -> HardwareSpec:
    """Hardware that multiplies fp8 weights; without fp8 tensor cores they are widened."""
    if "float8" in hardware.peak:
        return hardware
    peak = {**hardware.peak, "float8": hardware.peak_for("bfloat16")}
    return dataclasses.replace(hardware, peak=peak)


def surrounding_time(
    p: ProductParameters,
    hardware: HardwareSpec,
    calls: MlaBlockCalls,
    matmuls: BlockMatmuls,
    beside: Floats | None,
    further: float = 1.0,
) -> Floats:
    """Seconds of all matmuls and small kernels of blocks.

    Args:
        p: parameters of the software on this device.
        hardware: the machine.
        calls: the blocks.
        matmuls: their matmuls by the dense library.
        beside: bytes that replays leave in L2 beside the weights; None: nothing is replayed.
        further: time of the products around attention over that of dense matmuls.
    """
    c, hit = calls, np.zeros(len(calls))
    if beside is not None:
        replayed = matmuls.weight_bytes + beside
        hit = 1 / (1 + (replayed / (p.weights_retention * hardware.cache)) ** 4)
    is_narrow = np.array([stored_bytes(name) < ELEMENT for name in c.weights.tolist()])
    factor = np.where(is_narrow, p.narrow_matmul, p.matmul)
    own = hit * matmuls.projections_in_l2 + (1 - hit) * matmuls.projections
    others = hit * matmuls.further_in_l2 + (1 - hit) * matmuls.further
    cast = c.hidden_size + c.query_rank + c.heads * c.value_width
    moved = p.elementwise * ELEMENT * (cast + c.query_width) + is_narrow * CAST * cast
    small = is_narrow * PROJECTIONS * p.quantise + c.tokens * moved / hardware.memory_bandwidth
    return np.asarray(factor * own + further * p.matmul * others + small)
