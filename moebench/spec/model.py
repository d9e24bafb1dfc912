"""The network: its sizes, which of its layers have experts, and where its shapes come from."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Annotated, Any, Literal, cast

from moebench.spec.attention import Attention
from moebench.spec.config_keys import MODEL_KEYS
from moebench.spec.gate import NO_GATE, Gate
from moebench.spec.schema import check_at_most, check_range
from moebench.spec.shipped import load_shipped, shipped_names
from moebench.spec.weight_types import weight_type
from moebench.units import folded

FREE_EXPERTS = ("zero_experts", "identity_experts", "constant_experts")


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Sizes and conventions of a network, as in its published checkpoint.

    A dense model has no experts: `num_experts`, `top_k` and the gate are left out.
    """

    name: str
    source: str
    aliases: tuple[str, ...] = ()
    """Further names of networks with these sizes: fine-tuned ones, and later releases."""
    num_layers: int
    hidden_size: int
    intermediate_size: int = 0
    """Inner width of one routed expert."""
    num_experts: int = 0
    top_k: int = 0
    vocab_size: int
    attention: Attention
    gate: Gate = NO_GATE
    num_dense_layers: int = 0
    """Leading layers with a dense feed-forward network instead of experts."""
    moe_layer_step: int = 1
    """Step of the layers with experts among those after the dense ones; Llama 4 has 2."""
    moe_layers: tuple[int, ...] = ()
    """The layers with experts, from 0, where no step gives them; empty: see `moe_layer_step`."""
    dense_intermediate_size: int = 0
    shared_intermediate_size: int = 0
    """Inner width of all shared experts together; every token runs them. 0: none."""
    has_shared_gate: bool = False
    """The shared experts' output is scaled by sigmoid(w x) (Qwen1.5-MoE)."""
    residual_intermediate_size: int = 0
    """Width of a dense network beside the experts of each MoE layer (Arctic); 0: none."""
    zero_experts: int = 0
    identity_experts: int = 0
    constant_experts: int = 0
    """Experts that a token can choose and that cost no matmul: nothing, a copy (LongCat), or a
    learnt vector (MoE++)."""
    mean_top_k: float = 0.0
    """Mean experts per token where such experts take some of the `top_k` slots, as published."""
    is_gated: bool = True
    """Experts have three matrices (SwiGLU); False: two."""
    activation: Literal["silu", "gelu", "gelu-tanh", "relu", "relu2", "clamped-swiglu"] = "silu"
    has_expert_bias: bool = False
    """Bias on both matmuls of the routed experts (gpt-oss)."""
    has_dense_bias: bool = False
    """Bias on the matmuls of dense networks and shared experts (GPT-2)."""
    norm: Literal["rms", "layer", "layer-without-bias"] = "rms"
    norms_per_layer: int = 2
    """Norms over the hidden size in a layer; four where outputs are normed too."""
    norm_epsilon: float = 1e-5
    residual_multiplier: float = 1.0
    embedding_multiplier: float = 1.0
    logit_divisor: float = 1.0
    """Granite's factors on what a layer adds, on embeddings, and under the logits."""
    expert_weights: str = "bfloat16"
    other_weights: str = "bfloat16"
    """Types of the checkpoint's weights: routed experts; attention and dense networks. Names are
    those of `moebench.spec.weight_types`."""
    has_tied_embeddings: bool = False
    has_head_bias: bool = False
    """Bias on the logits (Phi)."""
    learnt_positions: int = 0
    """Rows of a table of position embeddings (GPT-2); 0: positions are rotary, or none."""
    total_parameters: Annotated[float, "count"] = 0.0
    active_parameters: Annotated[float, "count"] = 0.0
    """Per token; both counts are as published, and a test recomputes them."""
    note: str = ""
    """What the published parameter counts leave out."""
    moe_level_only: str = ""
    """What keeps levels above the MoE layer from being described, as linear attention does."""
    not_described: tuple[str, ...] = ()
    """What of the network these fields do not tell and that hardly moves its costs."""
    not_understood: tuple[str, ...] = ()
    """Keys of a config.json that change the network and that this description leaves out."""

    def __post_init__(self) -> None:
        sizes = ("num_layers", "hidden_size", "vocab_size", "moe_layer_step", "norms_per_layer")
        check_range(self, *sizes, least=1)
        check_range(self, "num_dense_layers", "dense_intermediate_size", "shared_intermediate_size")
        check_range(self, "residual_intermediate_size", "learnt_positions", *FREE_EXPERTS)
        check_at_most(self, "num_dense_layers", "num_layers")
        expert_sizes = ("num_experts", "top_k", "intermediate_size")
        has_experts = any(getattr(self, name) for name in expert_sizes)
        check_range(self, *expert_sizes, least=int(has_experts))
        if has_experts and self.gate is NO_GATE:
            raise ValueError("missing key 'gate', expected a table")
        if self.top_k > self.num_experts + self.num_free_experts:
            check_at_most(self, "top_k", "num_experts")
        for name in ("norm_epsilon", "residual_multiplier", "logit_divisor"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: found {getattr(self, name):g}, expected more than 0")
        for name in ("expert_weights", "other_weights"):
            weight_type(getattr(self, name), name)
        for name in ("moe_layers", "attention.windowed_layers"):
            self._check_layers(name)
        dense = self.num_layers - self.num_moe_layers
        if dense and not self.dense_intermediate_size and not self.moe_level_only:
            raise ValueError(
                f"dense_intermediate_size: found 0, expected the width of the {dense} dense layers"
            )
        groups = self.gate.num_groups
        choosable = self.num_experts // groups * self.gate.top_k_groups + self.num_free_experts
        if self.num_experts % groups or self.top_k > choosable:
            raise ValueError(
                f"gate.num_groups: found {groups}, expected a divisor of num_experts = "
                f"{self.num_experts} that leaves top_k = {self.top_k} experts to choose from"
            )

    @property
    def published_name(self) -> str:
        """Name of the model in papers, also for a narrow copy."""
        return self.name.partition("/")[0]

    def _check_layers(self, name: str) -> None:
        """Refuse a list of layers that is not ascending, or has one that the model lacks."""
        layers = attrgetter(name)(self)
        if layers != tuple(sorted({*layers})) or any(
            not 0 <= layer < self.num_layers for layer in layers
        ):
            last = self.num_layers - 1
            raise ValueError(f"{name}: found {layers}, expected ascending layers from 0 to {last}")

    def moe_layers_among(self, layers: int) -> tuple[int, ...]:
        """Which of the first `layers` layers have experts."""
        if not self.num_experts:
            return ()
        if self.moe_layers:
            return tuple(layer for layer in self.moe_layers if layer < layers)
        step = self.moe_layer_step
        return tuple(range(self.num_dense_layers, layers))[step - 1 :: step]

    @property
    def num_moe_layers(self) -> int:
        """Number of layers with experts."""
        return len(self.moe_layers_among(self.num_layers))

    @property
    def num_free_experts(self) -> int:
        """Experts that can be chosen and cost no matmul."""
        return self.zero_experts + self.identity_experts + self.constant_experts

    @property
    def expert_matrices(self) -> int:
        """Weight matrices of one expert: gate, up and down, or up and down."""
        return 3 if self.is_gated else 2

    @property
    def expert_parameters(self) -> int:
        """Parameters of one routed expert."""
        return self.expert_matrices * self.hidden_size * self.intermediate_size


def model_names() -> tuple[str, ...]:
    """Names of the models that ship with moebench."""
    return shipped_names("models")


def load_model(name: str) -> ModelSpec:
    """A model by its shipped name, alias or hub id in any case, or from a user's own file.

    That is a TOML, a Hugging Face config.json, or the folder that holds one.
    """
    from moebench.spec.huggingface.files import is_config

    if name not in model_names() and is_config(name):
        from moebench.spec.huggingface.translate import load_config

        return load_config(name)
    if not name.lower().endswith(".toml"):
        on_hub = folded(name.rpartition("/")[2])  # an id on the hub begins with its owner
        if on_hub not in map(folded, model_names()):
            name = model_aliases().get(on_hub, name)
        else:
            name = on_hub
    return cast(ModelSpec, load_shipped(ModelSpec, "models", name, MODEL_KEYS))


def shipped_model(name: str) -> ModelSpec | None:
    """The shipped model of a name, alias or hub id, which some table gives; None: not shipped."""
    on_hub = folded(name.rpartition("/")[2])
    known = {**{folded(shipped): shipped for shipped in model_names()}, **model_aliases()}
    return load_model(known[on_hub]) if on_hub in known else None


@functools.cache
def model_aliases() -> Mapping[str, str]:
    """The shipped model of each alias, folded."""
    return {
        folded(alias): name
        for name in model_names()
        for alias in load_shipped(ModelSpec, "models", name, MODEL_KEYS).aliases
    }


def scaled_down(model: ModelSpec, factor: int) -> ModelSpec:
    """The architecture of `model`, `factor` times narrower: hidden, intermediate and head sizes.

    Quick suites use it. The numbers of experts and heads and the gate stay, so routing is the same.
    """
    if factor == 1:
        return model
    head = max(8, model.attention.head_dim // factor)
    rotary = model.attention.rotary_dim * head // model.attention.head_dim // 2 * 2
    attention = replace(model.attention, head_dim=head, rotary_dim=rotary)
    widths = ("hidden_size", "intermediate_size", "dense_intermediate_size")
    more = ("shared_intermediate_size", "residual_intermediate_size")
    narrow: dict[str, Any] = {width: getattr(model, width) // factor for width in (*widths, *more)}
    narrow |= {"total_parameters": 0.0, "active_parameters": 0.0}
    return replace(model, name=f"{model.name}/{factor}", attention=attention, **narrow)


def of_layers(model: ModelSpec, layers: Sequence[int]) -> ModelSpec:
    """The network of some of a model's layers with experts alone, in their order."""
    attention = model.attention
    far = {*attention.windowed_among(model.num_layers)}
    windowed = tuple(place for place, layer in enumerate(layers) if layer in far)
    if not windowed:
        attention = replace(attention, window=0, full_attention_step=0, windowed_layers=())
    else:
        attention = replace(attention, full_attention_step=0, windowed_layers=windowed)
    return replace(
        model,
        name=f"{model.name}/layers-{'-'.join(map(str, layers))}",
        num_layers=len(layers),
        attention=attention,
        num_dense_layers=0,
        moe_layer_step=1,
        moe_layers=(),
        total_parameters=0.0,
        active_parameters=0.0,
    )
