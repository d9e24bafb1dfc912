"""Deployment: a model on equal GPUs, one step of it, and the share that one GPU holds.

Tensor parallelism splits heads and inner widths, so a rank *is* a narrower model, to which every
formula of `moebench.spec.ops` applies. Expert parallelism spreads experts and sequences over groups
of such ranks (attention runs data-parallel, as DeepSeek-V3 is served). The most loaded is priced.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from moebench.predict.arrays import Floats
from moebench.predict.kernels.weights import arithmetic
from moebench.predict.serving.communication import link
from moebench.routers.policy import Policy
from moebench.spec.case import OperatingPoint, Phase, Workload
from moebench.spec.hardware import HardwareSpec
from moebench.spec.load import ExpertLoad
from moebench.spec.model import ModelSpec
from moebench.spec.schema import MOST_SIZE, check_range
from moebench.spec.weight_types import weight_type

DeploymentLevel = Literal["moe", "decoder", "model"]
LEVELS: tuple[DeploymentLevel, ...] = ("moe", "decoder", "model")
PHASES: tuple[Phase, ...] = ("prefill", "decode", "train")
CACHE_DTYPES = ("bfloat16", "float8")
TRAINED = ("bfloat16", "float16")
"""Types of weights in training."""
PADDED = ("mxfp4",)
"""Types of which vllm splits an expert over ranks by whole groups, and does not refuse others."""
WIDTHS = (
    "intermediate_size",
    "shared_intermediate_size",
    "residual_intermediate_size",
    "dense_intermediate_size",
)
"""Inner widths that tensor parallelism splits."""


@dataclass(frozen=True)
class Deployment:
    """A model on GPUs and the workload of one step."""

    model: ModelSpec
    hardware: HardwareSpec
    phase: Phase = "decode"
    level: DeploymentLevel = "moe"
    context: int = 1024
    """Decode: tokens of each sequence in the KV cache. Prefill and train: tokens of a sequence."""
    dtype: str | None = None
    """Type of weights, by any name of `spec.weight_types`; None: the checkpoint's own types, or
    bfloat16 in training and where the device lacks the arithmetic. Embeddings, norms, router, head
    and activations are bfloat16."""
    kv_dtype: str = "bfloat16"
    """Type of the KV cache."""
    kernel: str | None = None
    """Short name of the expert kernel; None: vllm's choice on the device."""
    tensor_parallel: int = 1
    expert_parallel: int = 1
    num_layers: int | None = None
    """Layers of a whole model; None: all."""
    skew: float = 0.0
    """Exponent of the power law of the experts' shares."""
    expert_shares: tuple[float, ...] = ()
    """Share of each expert in the traffic, on any scale; empty: `skew`."""
    traffic: str = ""
    """Where skew or shares come from, in words."""

    def __post_init__(self) -> None:
        if weight_type(self.kv_dtype, "kv_dtype").name not in CACHE_DTYPES:
            expected = " or ".join(CACHE_DTYPES)
            raise ValueError(f"kv_dtype: found {self.kv_dtype!r}, expected {expected}")
        if not 1 <= self.context <= MOST_SIZE:
            raise ValueError(f"context: found {self.context}, expected 1 to {MOST_SIZE} tokens")
        if not self.model.num_moe_layers:
            name = self.model.name
            raise ValueError(f"{name}: found a dense model, expected at least one MoE layer")
        if self.hardware.kind != "gpu":
            name = self.hardware.name
            raise ValueError(f"{name}: found a CPU, expected a GPU; measure with the suite")
        check_range(self, "skew")
        self._check_shares()
        if self.level != "moe" and self.model.moe_level_only:
            raise ValueError(
                f"level: found {self.level!r}, expected 'moe'; of {self.model.name} this is not "
                f"understood: {self.model.moe_level_only}"
            )
        if self.phase == "train" and self.expert_weights not in TRAINED:
            raise ValueError(f"dtype: found {self.dtype!r}, expected bfloat16 in training")
        for weights in (self.expert_weights, self.other_weights):
            dtype = arithmetic(weights, self.hardware)
            self.hardware.check_priceable(dtype, self.num_devices)
        self._check_ranks()
        self._check_layers()

    def _check_shares(self) -> None:
        shares, n = self.expert_shares, self.model.num_experts
        if shares and len(shares) != n:
            raise ValueError(
                f"expert-shares: found {len(shares)} experts, expected num_experts = {n}"
            )
        if shares and sum(share > 0 for share in shares) < self.model.top_k:
            raise ValueError(
                f"expert-shares: found {sum(share > 0 for share in shares)} experts with a share, "
                f"expected at least top_k = {self.model.top_k}"
            )

    def routed_by(self, router: Policy) -> OperatingPoint:
        """How a router routes this deployment's traffic."""
        point = router.operating_point(self.model, self.skew)
        return replace(point, expert_shares=self.expert_shares)

    def _check_ranks(self) -> None:
        tp, ep, model = self.tensor_parallel, self.expert_parallel, self.model
        if min(tp, ep) < 1:
            raise ValueError(f"tp and ep: found {tp} and {ep}, expected at least 1")
        split = {"attention heads": model.attention.num_heads}
        for name, size in (split | {width: getattr(model, width) for width in WIDTHS}).items():
            if size % tp:
                raise ValueError(f"tp: found {tp}, expected a divisor of {name} = {size}")
        experts = f"num_experts = {model.num_experts}"
        if model.num_experts % ep:
            raise ValueError(f"ep: found {ep}, expected a divisor of {experts}")
        link(self.hardware, tp * ep)

    def _check_layers(self) -> None:
        found, most = self.num_layers, self.model.num_layers
        least = self.model.moe_layers_among(most)[0] + 1
        if found is not None and self.level != "model":
            raise ValueError(
                f"layers: found {found} at level {self.level}, which is one layer; "
                "they belong to --level model"
            )
        if found is not None and not least <= found <= most:
            raise ValueError(f"layers: found {found}, expected {least} to {most}")

    @property
    def expert_weights(self) -> str:
        """Name of the type of the routed experts' weights."""
        return self._weights(self.model.expert_weights)

    @property
    def other_weights(self) -> str:
        """Name of the type of the weights of attention, dense networks and shared experts."""
        if self.dtype is not None and weight_type(self.dtype).experts_only:
            return "bfloat16"
        return self._weights(self.model.other_weights)

    def _weights(self, published: str) -> str:
        if self.dtype is not None:
            return weight_type(self.dtype).name
        is_run = arithmetic(published, self.hardware) in self.hardware.peak
        return weight_type(published).name if is_run and self.phase != "train" else "bfloat16"

    @property
    def cache_dtype(self) -> str:
        """Name of the type of keys and values in the cache."""
        return weight_type(self.kv_dtype).name

    @property
    def rank(self) -> ModelSpec:
        """Model that the fullest tensor-parallel rank computes."""
        group = weight_type(self.expert_weights).group if self.expert_weights in PADDED else 1
        return rank_model(self.model, self.tensor_parallel, group)

    @property
    def num_devices(self) -> int:
        """Number of GPUs, tensor-parallel times expert-parallel ranks."""
        return self.tensor_parallel * self.expert_parallel

    @property
    def dense_layers(self) -> int:
        """Number of layers without experts that the step runs."""
        if self.level != "model":
            return 0
        return (self.num_layers or self.model.num_layers) - self.moe_layers

    @property
    def moe_layers(self) -> int:
        """Number of layers with experts that the step runs."""
        if self.level != "model":
            return 1
        return len(self.model.moe_layers_among(self.num_layers or self.model.num_layers))

    @property
    def windowed_layers(self) -> float:
        """Number of layers that the step runs and whose attention looks back a window only.

        Level "decoder" is the mean of the model's MoE layers, so it has a share of one.
        """
        model = self.model
        if self.level == "moe":
            return 0.0
        layers = self.num_layers or model.num_layers
        windowed = {*model.attention.windowed_among(layers)}
        if self.level == "model":
            return len(windowed)
        moe = {*model.moe_layers_among(layers)}
        return len(windowed & moe) / len(moe)

    def workload(self, batch: int) -> Workload:
        """Workload of `batch` sequences on all devices."""
        decodes = self.phase == "decode"
        return Workload(
            phase=self.phase,
            level="moe" if self.level == "moe" else "decoder",
            batch=batch,
            sequence_length=1 if decodes else self.context,
            context_length=self.context if decodes else 0,
        )

    def rank_workload(self, batch: int) -> Workload:
        """Workload of the expert-parallel group with the most sequences."""
        return self.workload(math.ceil(batch / self.expert_parallel))


def rank_model(model: ModelSpec, tensor_parallel: int, group: int = 1) -> ModelSpec:
    """Model that one tensor-parallel rank computes: fewer heads, narrower feed-forward networks.

    The router and MLA's compressions are on every rank; key-value heads are copied where there
    are fewer of them than ranks. The fullest rank's share of an expert is whole groups of columns.
    """
    a, tp = model.attention, tensor_parallel
    heads = a.num_heads // tp
    kv_heads = math.gcd(heads, max(1, a.num_kv_heads // tp))
    return replace(
        model,
        attention=replace(a, num_heads=heads, num_kv_heads=kv_heads),
        vocab_size=math.ceil(model.vocab_size / tp),
        **{width: getattr(model, width) // tp for width in WIDTHS}
        | {"intermediate_size": math.ceil(model.intermediate_size / tp / group) * group},
    )


def most_loaded_rank(
    load: ExpertLoad, k_distribution: tuple[float, ...], expert_parallel: int
) -> Floats:
    """Expected assignments [experts / ranks] of the most loaded of ranks of consecutive experts.

    In every step one of several ranks with equal expectations has the most assignments. Its lead
    is the expected maximum of as many normals, whose variance is that of a rank's share of k
    experts drawn without replacement; `k_distribution` has the chances of 0, 1, 2, ... experts.
    """
    counts = np.array(load.tokens_per_expert)
    ranks = counts.reshape(expert_parallel, -1)
    local: Floats = ranks[ranks.sum(axis=1).argmax()]
    expected = float(local.sum())
    if expert_parallel == 1 or not expected:
        return local
    num_experts, tokens = len(counts), load.num_tokens
    k, chance = np.arange(len(k_distribution)), np.array(k_distribution)
    share, mean_k = expected / load.num_assignments, float(chance @ k)
    within = k * share * (1 - share) * (num_experts - k) / (num_experts - 1)
    variance = tokens * float(chance @ within + share**2 * (chance @ (k - mean_k) ** 2))
    from statistics import NormalDist  # with fractions and decimal, which nothing else needs

    # Blom's approximation of the expected maximum of n standard normals.
    normals = NormalDist().inv_cdf((expert_parallel - 0.375) / (expert_parallel + 0.25))
    ahead = expected + normals * math.sqrt(max(variance, 0.0))
    most = tokens * float(chance @ np.minimum(k, len(local)))
    factor = min(ahead, most, load.num_assignments) / expected
    return np.minimum(local * max(factor, 1.0), tokens)
