"""Weights of experts in 8 or 4 bits: how they are packed, and what the packed codes mean.

Two formats that checkpoints are published in, for inference. The matrices of the gate, of `up` and
of `down` are packed one by one, so that no scale belongs to two of them.

- `fp8`: e4m3 codes, and a scale in fp32 for each block of 128 x 128 (blocks at the edges are
  smaller), the block's largest magnitude over 448.
- `mxfp4`: two e2m1 codes a byte, the first one in the low bits, and a power of two for each 32
  elements of a row, stored as its exponent plus 127 (e8m0).

**Source**: DeepSeek-V3 (2412.19437), section 3.3; OCP Microscaling formats 1.0, sections 5 and 6.3;
the gpt-oss model card (2508.10925).
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional

from moebench.experts.weights import ExpertWeights

Format = Literal["fp8", "mxfp4"]

BLOCK = 128
"""Side of a block with one scale (fp8)."""
GROUP_SIZE = 32
"""Elements of a row with one scale (mxfp4)."""
LARGEST_E4M3 = 448.0
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Magnitudes of e2m1 by their three bits; the fourth one is the sign."""
LARGEST_EXPONENT_E2M1 = 2
E8M0_BIAS = 127


class PackedMatrices(NamedTuple):
    """A stack of matrices: codes [matrices, rows, columns or half of them], and their scales."""

    codes: Shaped[Tensor, "matrices rows packed"]
    scales: Shaped[Tensor, "matrices scales_down scales_across"]

    @property
    def is_mxfp4(self) -> bool:
        return self.codes.dtype == torch.uint8


class PackedExperts(NamedTuple):
    """The routed experts of a layer, packed; gate and up of an expert are two matrices."""

    gate_up: PackedMatrices
    down: PackedMatrices


def pack_experts(weights: ExpertWeights, format: Format) -> PackedExperts:
    """Both stacks of an expert layer in a packed format; an error for sizes that it cannot hold."""
    inner, hidden = weights.down.shape[2], weights.down.shape[1]
    pack = pack_fp8 if format == "fp8" else pack_mxfp4
    return PackedExperts(pack(weights.gate_up.view(-1, inner, hidden)), pack(weights.down))


def pack_fp8(matrices: Float[Tensor, "matrices rows columns"]) -> PackedMatrices:
    """Round to e4m3 with a scale for each block of 128 x 128."""
    count, rows, columns = matrices.shape
    padded = functional.pad(matrices.float(), (0, -columns % BLOCK, 0, -rows % BLOCK))
    down, across = -(-rows // BLOCK), -(-columns // BLOCK)
    blocks = padded.view(count, down, BLOCK, across, BLOCK)
    largest = blocks.abs().amax((2, 4))
    scales = torch.where(largest > 0, largest / LARGEST_E4M3, 1.0)
    codes = (blocks / scales[:, :, None, :, None]).to(torch.float8_e4m3fn)
    codes = codes.flatten(3, 4).flatten(1, 2)[:, :rows, :columns].contiguous()
    return PackedMatrices(codes, scales)


def pack_mxfp4(matrices: Float[Tensor, "matrices rows columns"]) -> PackedMatrices:
    """Round to e2m1 with a power of two for each 32 elements of a row.

    Its exponent is that of the largest magnitude less 2, as the specification has it: what is then
    beyond 6 becomes 6, and halves go to the code whose last bit is 0.
    """
    count, rows, columns = matrices.shape
    if columns % GROUP_SIZE:
        raise ValueError(
            f"mxfp4: found rows of {columns} weights, expected a multiple of {GROUP_SIZE}, which "
            "share a scale"
        )
    groups = matrices.float().reshape(count, rows, -1, GROUP_SIZE)
    _, exponents = torch.frexp(groups.abs().amax(3))  # the largest is below 2 ** exponent
    exponents = (exponents - 1 - LARGEST_EXPONENT_E2M1).clamp(-E8M0_BIAS, E8M0_BIAS)
    values = torch.ldexp(groups, -exponents[..., None])
    table = values.new_tensor(E2M1)
    middles = (table[1:] + table[:-1]) / 2
    magnitudes = values.abs().contiguous()
    codes = torch.bucketize(magnitudes, middles)
    is_tie = magnitudes == middles[codes.clamp(max=len(middles) - 1)]
    codes = codes + (is_tie & (codes % 2 == 1)).long() + 8 * torch.signbit(values).long()
    codes = codes.flatten(2).byte()
    packed = codes[..., ::2] | codes[..., 1::2] << 4
    return PackedMatrices(packed, (exponents + E8M0_BIAS).byte())


def unpack(packed: PackedMatrices) -> Float[Tensor, "matrices rows columns"]:
    """The weights that packed matrices stand for, in fp32."""
    codes, scales = packed
    if not packed.is_mxfp4:
        scales = scales.repeat_interleave(BLOCK, 1).repeat_interleave(BLOCK, 2)
        return codes.float() * scales[:, : codes.shape[1], : codes.shape[2]]
    both = torch.stack((codes & 15, codes >> 4), -1).flatten(2)
    table = torch.tensor((*E2M1, *(-one for one in E2M1)), device=codes.device)
    factors = torch.ldexp(torch.ones(scales.shape, device=codes.device), scales.int() - E8M0_BIAS)
    return table[both.long()] * factors.repeat_interleave(GROUP_SIZE, 2)
