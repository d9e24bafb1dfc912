"""Every kernel of ours that is compiled ahead of time, for the report and its tests.

To add a kernel, add the function that yields its variants to `SOURCES`.
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

from moebench.experts.gpu.compilation import Variant
from moebench.experts.gpu.tiles import (
    FIRST_TMA_CAPABILITY,
    TilePhase,
    choose_phase,
    choose_tiles,
)
from moebench.spec.model import ModelSpec

CAPABILITIES = (80, 89, 90, 100, 120)
"""Compute capabilities of A100; L40S; H100 and H200; B200; RTX PRO 6000."""

Form = Literal["up, gated", "up", "down"]
Matmul = Literal["gate_up", "down"]
"""The two matmuls of a layer: gate and up are one."""
Dtype = Literal["bf16", "fp32"]
ELEMENT_BYTES: dict[Dtype, int] = {"bf16": 2, "fp32": 4}

BLOCK_OF_EXPERTS = 64

MATRICES = ("x", "hidden", "gate_up", "down")
TYPES = {
    **dict.fromkeys(("token_indices", "tokens_per_expert"), "*i64"),
    **dict.fromkeys(("routing_weights", "y"), "*fp32"),
    **dict.fromkeys(("num_experts", "row_tiles", "hidden_size", "intermediate_size"), "i32"),
    "x_stride": "i64",
}
"""Types of the arguments that are no matrices."""
MULTIPLES_OF_16 = frozenset({*MATRICES, *TYPES} - {"num_experts", "row_tiles"})
"""Arguments that are multiples of 16 for ordinary shapes."""


def expert_variants(capability: int) -> Iterator[Variant]:
    """Both kernels of the experts with every tile that this device uses.

    fp16 differs from bf16 in one word of its instructions, and in fp32 both phases have the same
    tiles.
    """
    for phase in get_args(TilePhase):
        for form in get_args(Form):
            yield expert_variant(capability, form, phase, "bf16")
    forms: tuple[Form, ...] = ("up, gated", "down")
    for form in forms:
        yield expert_variant(capability, form, "prefill", "fp32")


def expert_variant(capability: int, form: Form, phase: TilePhase, dtype: Dtype) -> Variant:
    """One kernel of the experts as `moebench.experts.gpu.launch` would launch it."""
    from moebench.experts.gpu import kernels

    size = ELEMENT_BYTES[dtype]
    tiles = choose_tiles(capability, phase, size)
    tile = tiles.down if form == "down" else tiles.up
    depth = tile.depth(size)
    constants: dict[str, Any] = {
        "TMA": capability >= FIRST_TMA_CAPABILITY,
        "UPCAST": False,
        "BLOCK_E": BLOCK_OF_EXPERTS,
        **tile.constants(size),
    }
    if form != "down":
        constants["IS_GATED"] = form == "up, gated"
    types = TYPES | dict.fromkeys(MATRICES, f"*{dtype}")
    if constants["TMA"]:
        weight = f"tensordesc<{dtype}[{tile.columns}, {depth}]>"
        types |= {"gate_up": weight, "down": weight}
        if form == "down":
            types["hidden"] = f"tensordesc<{dtype}[{tile.rows}, {depth}]>"
    return Variant(
        kernels.down_and_combine if form == "down" else kernels.up_and_activate,
        form,
        phase if dtype == "bf16" else "both",
        dtype,
        (tile.rows, tile.columns, depth),
        types,
        constants,
        MULTIPLES_OF_16,
        tile.warps,
        tile.stages,
    )


def layer_variants(capability: int, layer: ModelSpec, tokens: int) -> dict[Matmul, Variant]:
    """The kernels that a layer of gated experts launches in bf16, by what they multiply."""
    phase = choose_phase(tokens * layer.top_k, layer.num_experts)
    forms: dict[Matmul, Form] = {"gate_up": "up, gated", "down": "down"}
    return {
        matmul: expert_variant(capability, form, phase, "bf16") for matmul, form in forms.items()
    }


SOURCES: tuple[Callable[[int], Iterator[Variant]], ...] = (expert_variants,)
"""Functions that yield the variants of a compute capability (90 for 9.0)."""


def all_variants(capability: int) -> list[Variant]:
    """Every kernel with every tile that the device uses."""
    return [variant for source in SOURCES for variant in source(capability)]
