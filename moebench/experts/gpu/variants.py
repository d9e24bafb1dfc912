"""Every kernel of ours that is compiled ahead of time, for the report and its tests.

To add a kernel, add the function that yields its variants to `SOURCES`.
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal

from moebench.experts.gpu.compilation import Variant
from moebench.experts.gpu.quantised_variants import quantised_variants
from moebench.experts.gpu.routing_variants import routing_variants
from moebench.experts.gpu.tiles import (
    COMBINE_WARPS,
    COMBINED_COLUMNS,
    COMBINED_SLOTS,
    FIRST_PDL_CAPABILITY,
    FIRST_TMA_CAPABILITY,
    MOST_PARTS,
    TABLE,
    choose_tiles,
    parts_of_sum,
)
from moebench.experts.gpu.training_variants import training_variants
from moebench.spec.model import ModelSpec
from moebench.spec.tile_rows import most_row_tiles, rows_of_tile

CAPABILITIES = (80, 89, 90, 100, 120)
"""Compute capabilities of A100; L40S; H100 and H200; B200; RTX PRO 6000."""

Form = Literal["up, gated", "up", "up, clamped", "down", "down in parts", "down, biased"]
Matmul = Literal["gate_up", "down"]
"""The two matmuls of a layer: gate and up are one."""
Dtype = Literal["bf16", "fp32"]
ELEMENT_BYTES: dict[Dtype, int] = {"bf16": 2, "fp32": 4}

DECODE_ROWS = 32
"""Rows of a tile up to which the report calls it decode's."""

MATRICES = ("x", "hidden", "gate_up", "down", "down_memory", "bias", "outputs", "residual", "y")
VARYING = ("num_experts", "row_tiles", "bound", "num_slots")
TYPES = {
    **dict.fromkeys(("token_indices", "places"), "*i64"),
    **{
        "table": "*i32",
        "routing_weights": "*fp32",
        "multiplier": "fp32",
        "alpha": "fp32",
        "limit": "fp32",
    },
    **dict.fromkeys(
        (*VARYING, "hidden_size", "intermediate_size", "x_stride", "split_size"), "i32"
    ),
}
"""Types of the arguments that are no matrices."""
MULTIPLES_OF_16 = frozenset({*MATRICES, *TYPES} - {*VARYING, "multiplier", "alpha", "limit"})
"""Arguments that are multiples of 16 for ordinary shapes."""


def expert_variants(capability: int) -> Iterator[Variant]:
    """The kernels of the experts with the tiles that this device uses.

    Experts of two matrices, those of gpt-oss and fp32 in their smallest and largest tiles, parts of
    a sum in the smallest one. fp16 differs from bf16 in one word of its instructions.
    """
    table = TABLE[80]
    forms: tuple[Form, ...] = ("up, gated", "down")
    for rows in table:
        for form in forms:
            yield expert_variant(capability, form, rows, "bf16")
    for rows in (min(table), max(table)):
        others: tuple[Form, ...] = ("up", "up, clamped", "down, biased")
        for form in others:
            yield expert_variant(capability, form, rows, "bf16")
        for form in forms:
            yield expert_variant(capability, form, rows, "fp32")
    yield expert_variant(capability, "down in parts", min(table), "bf16")
    yield from (combine_variant(capability, parts) for parts in (1, MOST_PARTS))


def expert_variant(capability: int, form: Form, rows: int, dtype: Dtype) -> Variant:
    """One kernel of the experts as `moebench.experts.gpu.launch` would launch it."""
    from moebench.experts.gpu import kernels

    size = ELEMENT_BYTES[dtype]
    tiles, is_down = choose_tiles(capability, rows, size), form.startswith("down")
    tile = tiles.down if is_down else tiles.up
    depth = tile.depth(size)
    constants: dict[str, Any] = {
        "TMA": capability >= FIRST_TMA_CAPABILITY,
        "UPCAST": False,
        "HAS_BIAS": form in ("up, clamped", "down, biased"),
        "PDL": capability >= FIRST_PDL_CAPABILITY,
        **tile.constants(size),
    }
    if not is_down:
        constants |= {"IS_GATED": form != "up", "IS_CLAMPED": form == "up, clamped"}
        constants["GATHER"] = tile.gathers_by_tma
    types = TYPES | dict.fromkeys(MATRICES, f"*{dtype}")
    if form == "down in parts":
        types["outputs"] = "*fp32"
    if tile.gathers_by_tma:
        types["x"] = f"tensordesc<{dtype}[1, {depth}]>"
    if constants["TMA"]:
        weight = f"tensordesc<{dtype}[{tile.columns}, {depth}]>"
        types |= {"gate_up": weight, "down": weight}
        if is_down:
            types["hidden"] = f"tensordesc<{dtype}[{tile.rows}, {depth}]>"
    return Variant(
        kernels.multiply_down if is_down else kernels.up_and_activate,
        form,
        "decode" if rows <= DECODE_ROWS else "prefill",
        dtype,
        (tile.rows, tile.columns, depth),
        types,
        constants,
        MULTIPLES_OF_16,
        tile.warps,
        tile.stages,
    )


def combine_variant(capability: int, parts: int) -> Variant:
    """The kernel that adds each token's outputs, or their parts, and the residual in bf16."""
    from moebench.experts.gpu import combine_kernel

    types = TYPES | dict.fromkeys(MATRICES, "*bf16")
    if parts > 1:
        types["outputs"] = "*fp32"
    constants = {"HAS_RESIDUAL": True, "PARTS": parts, "SLOTS": COMBINED_SLOTS}
    constants |= {"BLOCK_N": COMBINED_COLUMNS, "PDL": capability >= FIRST_PDL_CAPABILITY}
    return Variant(
        combine_kernel.combine,
        "combine" if parts == 1 else f"combine {parts} parts",
        "both",
        "bf16",
        (0, 0, 0),
        types,
        constants,
        MULTIPLES_OF_16,
        COMBINE_WARPS,
        stages=1,
    )


def layer_variants(
    capability: int, multiprocessors: int, layer: ModelSpec, tokens: int
) -> dict[Matmul, Variant]:
    """The kernels that a layer of gated experts launches in bf16, by what they multiply."""
    assignments = tokens * layer.top_k
    rows = rows_of_tile(assignments / layer.num_experts)
    down = choose_tiles(capability, rows, ELEMENT_BYTES["bf16"]).down
    row_tiles = most_row_tiles(assignments, layer.num_experts, rows)
    column_tiles = -(-layer.hidden_size // down.columns)
    steps = -(-layer.intermediate_size // down.depth(ELEMENT_BYTES["bf16"]))
    parts = parts_of_sum(row_tiles, column_tiles, steps, multiprocessors)
    is_split = parts > 1 and not down.is_persistent
    forms: dict[Matmul, Form] = {
        "gate_up": "up, gated",
        "down": "down in parts" if is_split else "down",
    }
    return {
        matmul: expert_variant(capability, form, rows, "bf16") for matmul, form in forms.items()
    }


SOURCES: tuple[Callable[[int], Iterator[Variant]], ...] = (
    expert_variants,
    training_variants,
    quantised_variants,
    routing_variants,
)
"""Functions that yield the variants of a compute capability (90 for 9.0)."""


def all_variants(capability: int) -> list[Variant]:
    """Every kernel with every tile that the device uses."""
    return [variant for source in SOURCES for variant in source(capability)]
