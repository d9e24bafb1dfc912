"""The gate of a network: how its router logits become a choice of experts and their weights."""

from dataclasses import dataclass
from typing import Literal

from moebench.spec.schema import check_at_most, check_range


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
    group_score: Literal["best-two", "maximum"] = "best-two"
    """Score of a group: sum of its two best (DeepSeek-V3) or its maximum (DeepSeek-V2)."""
    has_correction_bias: bool = False
    """A bias on the scores that takes part in the choice and not in the weights (DeepSeek-V3)."""
    has_bias: bool = False
    """A bias on the router logits (gpt-oss)."""
    router_dtype: Literal["model", "float32"] = "model"
    """Dtype of the product that makes the logits: the model's own, or fp32 (DeepSeek-V3)."""
    weights_input: bool = False
    """Weights multiply the experts' input and not their output (Llama 4)."""
    not_described: str = ""
    """What of the choice these fields do not tell, such as SparseMixer (Phi-3.5-MoE)."""

    def __post_init__(self) -> None:
        check_range(self, "num_groups", "top_k_groups", least=1)
        check_at_most(self, "top_k_groups", "num_groups")
        if self.scale <= 0:
            raise ValueError(f"scale: found {self.scale}, expected more than 0")

    @property
    def logits_compete(self) -> bool:
        """Whether logits compete for the slots: softmax keeps their order, but not that of sums."""
        has_sums = self.num_groups > 1 and self.group_score == "best-two"
        return self.score == "softmax" and not self.has_correction_bias and not has_sums


NO_GATE = Gate(score="softmax", renormalise=False)
"""Stands for the gate of a model without experts."""
