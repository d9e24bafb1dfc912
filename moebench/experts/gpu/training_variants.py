"""The training kernels as they are compiled ahead of time: types, constants and tiles."""

from collections.abc import Iterator

from moebench.experts.gpu.compilation import Variant
from moebench.experts.gpu.tiles import KernelTile
from moebench.experts.gpu.training_tiles import constants, training_tiles

TYPES = {
    **dict.fromkeys(("token_indices", "ends"), "*i64"),
    "table": "*i32",
    "grad_weights": "*fp32",
}
"""Arguments that point to something else than elements of the layer's type."""
MATRICES = (
    *("x", "gate_up", "products", "activated", "matrices", "grad_rows", "grad_y", "down"),
    *("routing_weights", "grad_products", "weighted", "left", "right", "gradients"),
)
COUNTS = frozenset({"num_experts", "tiles", "bound"})
"""Numbers that are multiples of 16 by chance only."""
FORMS: tuple[tuple[str, str, str, dict[str, int]], ...] = (
    ("up, gated, kept", "up_and_keep", "up", {"IS_GATED": True}),
    ("grad activation, gated", "activation_backward", "activation", {"IS_GATED": True}),
    ("grad rows", "rows_backward", "rows", {}),
    ("grad gate_up", "matrices_backward", "matrices", {"GATHERS_LEFT": False}),
    ("grad down", "matrices_backward", "matrices", {"GATHERS_LEFT": True}),
)
"""Name in the report, kernel, field of its tile, and constants."""
ROWS = (16, 128)
"""The smallest and the largest row tile; those of 32 and 64 rows lie between them."""


def training_variants(capability: int) -> Iterator[Variant]:
    """The kernels that training adds; every device runs the same ones."""
    for dtype, size in (("bf16", 2), ("fp32", 4)):
        compiled = set()
        for rows in ROWS:
            tiles = training_tiles(rows, size)
            for name, kernel, place, values in FORMS:
                tile: KernelTile = getattr(tiles, place)
                if (name, tile) not in compiled:
                    compiled.add((name, tile))
                    fixed = values | {"UPCAST": False} | constants(tile, size)
                    yield _variant(name, kernel, dtype, tile, fixed)


def _variant(
    name: str, kernel: str, dtype: str, tile: KernelTile, fixed: dict[str, int]
) -> Variant:
    from moebench.experts.gpu import training_kernels

    function = getattr(training_kernels, kernel)
    types = TYPES | dict.fromkeys(MATRICES, f"*{dtype}")
    arguments = {*function.arg_names} - fixed.keys()
    return Variant(
        function,
        name,
        "training",
        dtype,
        (tile.rows, tile.columns, fixed["BLOCK_K"]),
        {argument: types.get(argument, "i32") for argument in arguments},
        fixed,
        frozenset(arguments - COUNTS),
        tile.warps,
        tile.stages,
    )
