"""The network: its sizes, its attention, and how its gate turns logits into weights."""

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, cast

from moebench.spec.schema import check_range
from moebench.spec.shipped import load_shipped, shipped_names


def _check_at_most(table: object, name: str, limit: str) -> None:
    """Refuse a field of a dataclass that is more than another one."""
    found, most = getattr(table, name), getattr(table, limit)
    if found > most:
        raise ValueError(f"{name}: found {found}, expected at most {limit} = {most}")


@dataclass(frozen=True)
class Attention:
    """Sizes of attention: grouped-query, or DeepSeek's multi-head latent attention (MLA).

    MLA is counted and predicted; `moebench` does not execute it.
    """

    kind: Literal["gqa", "mla"]
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float = 10000.0
    has_bias: bool = False
    """Bias on the query, key and value projections (Qwen1.5 and Qwen2)."""
    norm: Literal["none", "per-head", "full"] = "none"
    """RMSNorm of queries and keys: over each head (Qwen3) or over the whole projection (OLMoE)."""
    query_rank: int = 0
    """MLA: rank of the query compression; 0 means a full query projection."""
    kv_rank: int = 0
    """MLA: width of the compressed key-value vector that is cached."""
    rope_head_dim: int = 0
    """MLA: width of the rotary key that all heads share, cached beside the compressed vector."""
    value_head_dim: int = 0
    """MLA: width of a value head."""

    def __post_init__(self) -> None:
        mla_sizes = ("kv_rank", "rope_head_dim", "value_head_dim")
        sizes = ("num_heads", "num_kv_heads", "head_dim", "rope_theta")
        check_range(self, *sizes, *(mla_sizes if self.kind == "mla" else ()), least=1)
        check_range(self, "query_rank", *mla_sizes)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads: found {self.num_kv_heads}, expected a divisor "
                f"of num_heads = {self.num_heads}"
            )


@dataclass(frozen=True)
class Gate:
    """How router logits become weights (the gate convention of the base model)."""

    score: Literal["softmax", "sigmoid"]
    renormalise: bool
    """Divide the kept scores by their sum, as Mixtral, Qwen3 and DeepSeek-V3 do."""
    scale: float = 1.0
    """Factor on the final weights (`routed_scaling_factor`)."""
    num_groups: int = 1
    top_k_groups: int = 1
    """Group-limited choice: only experts of the best `top_k_groups` groups can be chosen."""
    has_correction_bias: bool = False
    """A bias that takes part in the choice and not in the weights (DeepSeek-V3)."""

    def __post_init__(self) -> None:
        check_range(self, "num_groups", "top_k_groups", least=1)
        _check_at_most(self, "top_k_groups", "num_groups")
        if self.scale <= 0:
            raise ValueError(f"scale: found {self.scale}, expected more than 0")


@dataclass(frozen=True)
class ModelSpec:
    """Sizes and conventions of a network, as in its published checkpoint."""

    name: str
    source: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    """Inner width of one routed expert."""
    num_experts: int
    top_k: int
    vocab_size: int
    attention: Attention
    gate: Gate
    num_dense_layers: int = 0
    """Leading layers with a dense feed-forward network instead of experts."""
    dense_intermediate_size: int = 0
    shared_intermediate_size: int = 0
    """Inner width of all shared experts together; every token runs them. 0: none."""
    has_shared_gate: bool = False
    """The shared experts' output is scaled by sigmoid(w x) (Qwen1.5-MoE)."""
    is_gated: bool = True
    """Experts have three matrices (SwiGLU); False: two."""
    has_tied_embeddings: bool = False
    total_parameters: Annotated[float, "count"] = 0.0
    active_parameters: Annotated[float, "count"] = 0.0
    """Per token; both counts are as published, and a test recomputes them."""
    note: str = ""
    """What the published parameter counts leave out."""

    def __post_init__(self) -> None:
        sizes = ("num_layers", "hidden_size", "intermediate_size", "num_experts", "top_k")
        check_range(self, *sizes, "vocab_size", least=1)
        check_range(self, "num_dense_layers", "dense_intermediate_size", "shared_intermediate_size")
        _check_at_most(self, "top_k", "num_experts")
        _check_at_most(self, "num_dense_layers", "num_layers")
        dense = self.num_dense_layers
        if dense and not self.dense_intermediate_size:
            raise ValueError(
                f"dense_intermediate_size: found 0, expected the width of the {dense} dense layers"
            )
        groups = self.gate.num_groups
        choosable = self.num_experts // groups * self.gate.top_k_groups
        if self.num_experts % groups or self.top_k > choosable:
            raise ValueError(
                f"gate.num_groups: found {groups}, expected a divisor of num_experts = "
                f"{self.num_experts} that leaves top_k = {self.top_k} experts to choose from"
            )

    @property
    def published_name(self) -> str:
        """Name of the model in papers, also for a narrow copy."""
        return self.name.partition("/")[0]

    @property
    def num_moe_layers(self) -> int:
        """Number of layers with experts."""
        return self.num_layers - self.num_dense_layers

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
    """A model by its shipped name (errors have the nearest one), or from a TOML file."""
    return cast(ModelSpec, load_shipped(ModelSpec, "models", name))


def scaled_down(model: ModelSpec, factor: int) -> ModelSpec:
    """The architecture of `model`, `factor` times narrower: hidden, intermediate and head sizes.

    Quick suites use it. The numbers of experts and heads and the gate stay, so routing is the same.
    """
    if factor == 1:
        return model
    attention = replace(model.attention, head_dim=max(8, model.attention.head_dim // factor))
    widths = ("hidden_size", "intermediate_size", "dense_intermediate_size")
    narrow: dict[str, Any] = {
        width: getattr(model, width) // factor for width in (*widths, "shared_intermediate_size")
    }
    narrow |= {"total_parameters": 0.0, "active_parameters": 0.0}
    return replace(model, name=f"{model.name}/{factor}", attention=attention, **narrow)
