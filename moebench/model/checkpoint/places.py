"""Where the tensors of a decoder layer lie: names in checkpoints, and parameters of our own layer.

Names are those of published checkpoints, as transformers 5.23.0 writes them; some families store
each expert apart, some all of them stacked. A name is relative to its decoder layer.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import NamedTuple

from moebench.model.decoder import Layer

READ_FAMILIES = (
    *("mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "qwen3_vl_moe_text", "deepseek_v2"),
    *("deepseek_v3", "glm4_moe", "glm4v_moe_text", "granitemoe", "granitemoeshared", "dots1"),
    *("ernie4_5_moe", "hunyuan_v1_moe", "hy_v3", "minimax_m2", "solar_open", "aria_text", "mellum"),
)
"""Every `model_type` whose layers are read; a test compares each with transformers' own."""
NEIGHBOURS = ("ernie4_5_moe",)
"""Families that rotate neighbouring dimensions: the same network with the rows in another order."""
PLACES: Mapping[str, tuple[str, ...]] = {
    "attention_norm": ("input_layernorm",),
    "attention.query": ("self_attn.q_proj",),
    "attention.key": ("self_attn.k_proj",),
    "attention.value": ("self_attn.v_proj",),
    "attention.output": ("self_attn.o_proj",),
    "attention.query_norm": ("self_attn.q_norm", "self_attn.query_layernorm"),
    "attention.key_norm": ("self_attn.k_norm", "self_attn.key_layernorm"),
    "moe_norm": ("post_attention_layernorm",),
    "shared.gate": ("mlp.shared_expert_gate",),
}
BLOCKS = ("mlp", "block_sparse_moe")
SHARED = ("mlp.shared_expert", "mlp.shared_experts", "mlp.shared_mlp", "shared_mlp")
ONE_EXPERT = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))
STACKED = (
    ("experts.gate_up_proj", "experts.down_proj"),
    ("input_linear.weight", "output_linear.weight"),
    ("experts.fc1.weight", "experts.fc2.weight"),
)
ROUTERS = tuple(
    f"{block}.{name}.weight"
    for block in BLOCKS
    for name in ("gate", "router", "router.layer", "gate.wg", "router.gate")
)
CORRECTIONS = (
    *("mlp.gate.e_score_correction_bias", "mlp.moe_statics.e_score_correction_bias"),
    *("block_sparse_moe.e_score_correction_bias", "mlp.expert_bias"),
)
LOGIT_BIASES = ("mlp.router.bias",)

Shape = tuple[int, ...]


class Piece(NamedTuple):
    """A tensor of a checkpoint, and the part of a parameter that it fills."""

    name: str
    shape: Shape
    """Its shape in the checkpoint."""
    parameter: str
    part: tuple[int | slice, ...] = (slice(None),)
    """The part of the parameter that it fills."""
    is_transposed: bool = False
    """Whether its last two dimensions are exchanged in the checkpoint."""


def first_of(names: Collection[str], places: tuple[str, ...], what: str) -> str:
    """The first of some places that a layer has; an error where it has none."""
    found = next((place for place in places if place in names), None)
    if found is None:
        raise ValueError(f"{what}: found no tensor, expected {' or '.join(places)}")
    return found


def layer_pieces(
    layer: Layer, names: Collection[str], shape: Callable[[str], Shape]
) -> Iterator[Piece]:
    """The tensors that fill a layer, but its router.

    Args:
        layer: Ours; its parameters may be on the meta device.
        names: What the checkpoint has of the layer.
        shape: Of a tensor of the checkpoint, by its name.
    """
    for own, parameter in layer.named_parameters():
        module, _, kind = own.rpartition(".")
        if module == "experts" or own in ("shared.gate_up.weight", "shared.down.weight"):
            continue
        places = tuple(f"{place}.{kind}" for place in PLACES[module])
        yield Piece(first_of(names, places, own), tuple(parameter.shape), own)
    if layer.shared is not None:
        yield from _shared(layer, names)
    yield from _experts(layer, names, shape)


def _shared(layer: Layer, names: Collection[str]) -> Iterator[Piece]:
    """Shared experts: gate and up apart, or one above the other (Granite)."""
    assert layer.shared is not None
    up, down = (tuple(p.shape) for p in (layer.shared.gate_up.weight, layer.shared.down.weight))
    for place in SHARED:
        if f"{place}.input_linear.weight" in names:
            yield Piece(f"{place}.input_linear.weight", up, "shared.gate_up.weight")
            yield Piece(f"{place}.output_linear.weight", down, "shared.down.weight")
            return
    places = tuple(f"{place}.down_proj.weight" for place in SHARED)
    place = first_of(names, places, "shared experts").removesuffix(".down_proj.weight")
    half, hidden = up[0] // 2, up[1]
    rows = {"gate": slice(0, half), "up": slice(half, None)}
    for kind, part in rows.items():
        name = f"{place}.{kind}_proj.weight"
        yield Piece(name, (half, hidden), "shared.gate_up.weight", (part,))
    yield Piece(f"{place}.down_proj.weight", down, "shared.down.weight")


def _experts(
    layer: Layer, names: Collection[str], shape: Callable[[str], Shape]
) -> Iterator[Piece]:
    """Routed experts: each apart, or stacked; of those some have inputs before outputs."""
    up, down = tuple(layer.experts.gate_up.shape), tuple(layer.experts.down.shape)
    (number, width, hidden), inner = up, down[2]
    for block in BLOCKS:
        for pair in STACKED:
            found = f"{block}.{pair[0]}", f"{block}.{pair[1]}"
            if found[0] in names and found[1] in names:
                transposed = (number, hidden, width), (number, inner, hidden)
                turned = tuple(map(shape, found)) == transposed
                shapes = transposed if turned else (up, down)
                yield Piece(found[0], shapes[0], "experts.gate_up", is_transposed=turned)
                yield Piece(found[1], shapes[1], "experts.down", is_transposed=turned)
                return
    ways = {
        f"{block}.experts.0.{way[2]}.weight": (block, way) for block in BLOCKS for way in ONE_EXPERT
    }
    block, (gate, above, below) = ways[first_of(names, tuple(ways), "experts")]
    rows = {gate: slice(0, inner), above: slice(inner, None)}
    for expert in range(number):
        for kind, part in rows.items():
            name = f"{block}.experts.{expert}.{kind}.weight"
            yield Piece(name, (inner, hidden), "experts.gate_up", (expert, part))
        yield Piece(f"{block}.experts.{expert}.{below}.weight", down[1:], "experts.down", (expert,))
