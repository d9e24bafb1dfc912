"""Matmuls with weights packed by oneDNN: undocumented operators, which not every build has."""

import functools

import torch
from jaxtyping import Float
from torch import Tensor

LEAST_ROWS = 4
"""Rows to which short slices are padded: oneDNN's kernels for fewer rows are no faster."""


@functools.cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether oneDNN packs weights of this type on this processor."""
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not has_onednn or dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return False
    try:
        packed_weight(torch.zeros(16, 16, dtype=dtype))
    except (AttributeError, RuntimeError):  # no such operator, or fp16 without the instructions
        return False
    return True


def packed_weight(weight: Float[Tensor, "outputs inputs"]) -> Tensor:
    """A copy of a weight in oneDNN's blocks; only `linear` can read it."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), LEAST_ROWS)
    return packed


def linear(x: Float[Tensor, "rows inputs"], packed: Tensor) -> Float[Tensor, "rows outputs"]:
    """Multiply by a packed weight."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
    return product
