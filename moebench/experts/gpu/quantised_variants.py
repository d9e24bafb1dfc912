"""The kernels that read packed weights as they are compiled ahead of time."""

from collections.abc import Iterator

from moebench.experts.gpu.compilation import Variant
from moebench.experts.gpu.quantised_tiles import FIRST_CONVERTING_CAPABILITY, quantised_tiles
from moebench.experts.gpu.tiles import KernelTile
from moebench.experts.gpu.training_tiles import constants

TYPES = {
    **dict.fromkeys(("x", "hidden", "outputs", "bias"), "*bf16"),
    **dict.fromkeys(("alpha", "limit"), "fp32"),
    "token_indices": "*i64",
    "table": "*i32",
}
COUNTS = frozenset({"num_experts", "row_tiles", "bound", "alpha", "limit"})
"""Numbers that are multiples of 16 by chance only, or no whole ones."""
ROWS = (16, 128)
"""The smallest and the largest row tile; those of 32 and 64 rows lie between them."""


def quantised_variants(capability: int) -> Iterator[Variant]:
    """Both kernels in both formats, for gated experts and x in bf16."""
    for rows in ROWS:
        tiles = quantised_tiles(capability, rows)
        for is_mxfp4 in (False, True):
            yield _variant("up, gated", "packed_up", capability, tiles.up, is_mxfp4)
            yield _variant("down", "packed_down", capability, tiles.down, is_mxfp4)


def _variant(name: str, kernel: str, capability: int, tile: KernelTile, is_mxfp4: bool) -> Variant:
    from moebench.experts.gpu import quantised_kernels

    function = getattr(quantised_kernels, kernel)
    converts = capability >= FIRST_CONVERTING_CAPABILITY
    fixed: dict[str, int] = {
        "MXFP4": is_mxfp4,
        "CONVERTS": converts,
        "UPCAST": False,
        "HAS_BIAS": False,
    }
    fixed |= constants(tile, 2)
    if kernel == "packed_up":
        fixed |= {"IS_GATED": True, "IS_CLAMPED": False}
    codes = "*fp8e4nv" if converts and not is_mxfp4 else "*u8"
    types = TYPES | {"codes": codes, "scales": "*u8" if is_mxfp4 else "*fp32"}
    arguments = {*function.arg_names} - fixed.keys()
    return Variant(
        function,
        name,
        "packed",
        "mxfp4" if is_mxfp4 else "fp8",
        (tile.rows, tile.columns, fixed["BLOCK_K"]),
        {argument: types.get(argument, "i32") for argument in arguments},
        fixed,
        frozenset(arguments - COUNTS),
        tile.warps,
        tile.stages,
    )
