"""Attention of a network: heads, the rotary embedding, windows, and what stands around it."""

from dataclasses import dataclass
from typing import Literal

from moebench.spec.schema import check_range


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the context that a model was first trained on.

    Names are those of `rope_scaling` in config.json; a kind takes only the figures that it needs.
    """

    kind: Literal["linear", "dynamic", "yarn", "llama3", "longrope"]
    factor: float = 1.0
    original_context: int = 0
    """`original_max_position_embeddings`: positions of the first training."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    attention_factor: float = 0.0
    """YaRN and longrope: factor on cosine and sine; 0: the one that the method derives."""
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    truncates: bool = True
    """YaRN: the ramp's ends are whole dimensions (gpt-oss: they are not)."""

    def __post_init__(self) -> None:
        check_range(self, "original_context", least=int(self.kind in ("yarn", "llama3")))
        if self.factor <= 0:
            raise ValueError(f"factor: found {self.factor:g}, expected more than 0")


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
    has_output_bias: bool = False
    """Bias on the output projection (gpt-oss)."""
    has_sinks: bool = False
    """A learnt logit per head that takes part in the softmax and has no value (gpt-oss)."""
    norm: Literal["none", "per-head", "full"] = "none"
    """RMSNorm of queries and keys: over each head (Qwen3) or over the whole projection (OLMoE)."""
    output_gate: Literal["none", "per-head", "full"] = "none"
    """A projection of the input that gates the output: each head (Laguna), or each element."""
    norm_after_rotary: bool = False
    """Queries and keys are normed after the rotary embedding (Hunyuan)."""
    rotary_dim: int = 0
    """Leading dimensions of a head that rotate (GLM-4.5: half); 0: all of it."""
    rope_scaling: RopeScaling | None = None
    softmax_scale: float = 0.0
    """Factor on the scores (Granite's `attention_multiplier`); 0: one over the root of a head."""
    softcap: float = 0.0
    """Scores are bounded to c tanh(score / c); 0: they are not."""
    window: int = 0
    """Tokens that a position looks back in windowed layers, itself included; 0: no window."""
    full_attention_step: int = 0
    """Every such layer, counted from 1, attends in full beside windowed ones; 0: none does."""
    windowed_layers: tuple[int, ...] = ()
    """The windowed layers, from 0, where no step gives them; empty: see `full_attention_step`."""
    query_rank: int = 0
    """MLA: rank of the query compression; 0 means a full query projection."""
    kv_rank: int = 0
    """MLA: width of the compressed key-value vector that is cached."""
    rope_head_dim: int = 0
    """MLA: width of the rotary key that all heads share, cached beside the compressed vector."""
    value_head_dim: int = 0
    """Width of a value head; 0: that of a query head."""

    def __post_init__(self) -> None:
        mla_sizes = ("kv_rank", "rope_head_dim", "value_head_dim")
        sizes = ("num_heads", "num_kv_heads", "head_dim", "rope_theta")
        check_range(self, *sizes, *(mla_sizes if self.kind == "mla" else ()), least=1)
        check_range(self, "query_rank", *mla_sizes, "window", "full_attention_step", "softcap")
        check_range(self, "softmax_scale")
        check_range(self, "rotary_dim", most=self.head_dim)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads: found {self.num_kv_heads}, expected a divisor "
                f"of num_heads = {self.num_heads}"
            )
        if (self.full_attention_step or self.windowed_layers) and not self.window:
            raise ValueError("window: found 0, expected the tokens of the windowed layers")

    def windowed_among(self, layers: int) -> tuple[int, ...]:
        """Which of the first `layers` layers look back a window only."""
        if not self.window:
            return ()
        if self.windowed_layers:
            return tuple(layer for layer in self.windowed_layers if layer < layers)
        step = self.full_attention_step
        return tuple(layer for layer in range(layers) if not step or (layer + 1) % step)
