"""Deployment: a model on equal GPUs, one step of it, and the share that one GPU holds.

Tensor parallelism splits heads and inner widths, so a rank *is* a narrower model, to which every
formula of `moebench.spec.ops` applies; `parallelism` says how GPUs share attention and experts. The
most loaded rank is priced.
"""

import functools
import math
from dataclasses import dataclass, replace
from typing import Literal

from moebench.predict.kernels.weights import arithmetic
from moebench.predict.serving.draft import Draft
from moebench.predict.serving.parallelism import Parallelism
from moebench.predict.serving.ranks import WIDTHS, rank_model, split_of
from moebench.predict.serving.recorded import RecordedRouting
from moebench.predict.serving.trainer import Training
from moebench.routers.policy import Policy
from moebench.spec.case import OperatingPoint, Phase, Workload
from moebench.spec.hardware import HardwareSpec
from moebench.spec.model import ModelSpec
from moebench.spec.schema import MOST_SIZE, check_range
from moebench.spec.weight_types import weight_type
from moebench.units import nearest

DeploymentLevel = Literal["moe", "decoder", "model"]
LEVELS: tuple[DeploymentLevel, ...] = ("moe", "decoder", "model")
PHASES: tuple[Phase, ...] = ("prefill", "decode", "train")
CACHE_DTYPES = ("bfloat16", "float16", "float8")
ENGINES = ("vllm", "sglang", "trtllm")
MOST_OVERHEAD = 10.0
"""Seconds."""
TRAINED = ("bfloat16", "float16", "float8", "mxfp8")
"""Types of weights in training."""
PADDED = ("mxfp4",)
"""Types of which vllm splits an expert over ranks by whole groups, and does not refuse others."""


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
    """Short name of the expert kernel; None: the engine's choice on the device."""
    engine: str | None = None
    """Engine, with its version after a colon ("vllm:0.11"); None: that of the kernel, else vllm."""
    parallel: Parallelism = Parallelism()
    cached_prefix: int = 0
    """Prefill: tokens of each prompt that are in the cache already."""
    draft: Draft | None = None
    """Decode: tokens drafted ahead in each step, which the step verifies; None: none."""
    engine_overhead: float | None = None
    """Seconds of a step of a whole model that no kernel explains; None: the engine's."""
    training: Training = Training()
    """Train: how batches are trained."""
    num_layers: int | None = None
    """Layers of a whole model; None: all."""
    skew: float = 0.0
    """Exponent of the power law of the experts' shares."""
    expert_shares: tuple[float, ...] = ()
    """Share of each expert in the traffic, on any scale; empty: `skew`."""
    recorded: RecordedRouting | None = None
    """Traces that say what steps load; None: tokens are independent."""
    traffic: str = ""
    """Where skew or shares come from, in words."""

    def __post_init__(self) -> None:
        if weight_type(self.kv_dtype, "kv_dtype").name not in CACHE_DTYPES:
            expected = " or ".join(CACHE_DTYPES)
            raise ValueError(f"kv_dtype: found {self.kv_dtype!r}, expected {expected}")
        engine = (self.engine or ENGINES[0]).partition(":")[0]
        if engine not in ENGINES:
            raise ValueError(f"engine: found {self.engine!r}{nearest(engine, ENGINES)}")
        if not 1 <= self.context <= MOST_SIZE:
            raise ValueError(f"context: found {self.context}, expected 1 to {MOST_SIZE} tokens")
        if self.level == "moe" and self.is_dense:
            name = self.model.name
            raise ValueError(
                f"{name}: found a dense model, expected at least one MoE layer at level 'moe'; "
                "--level model and --level decoder price it"
            )
        if self.hardware.kind != "gpu":
            name = self.hardware.name
            raise ValueError(f"{name}: found a CPU, expected a GPU; measure with the suite")
        if self.engine_overhead is not None and not 0 <= self.engine_overhead <= MOST_OVERHEAD:
            raise ValueError(
                f"engine-overhead: found {self.engine_overhead:g} s, expected 0 to "
                f"{MOST_OVERHEAD:g} s"
            )
        check_range(self, "skew")
        self._check_shares()
        if self.level != "moe" and self.model.moe_level_only:
            raise ValueError(
                f"level: found {self.level!r}, expected 'moe'; of {self.model.name} this is not "
                f"understood: {self.model.moe_level_only}"
            )
        if self.phase == "train" and self.expert_weights not in TRAINED:
            raise ValueError(
                f"dtype: found {self.dtype!r}, expected bfloat16, float8 or mxfp8 in training"
            )
        for weights in (self.expert_weights, self.other_weights):
            dtype = arithmetic(weights, self.hardware)
            self.hardware.check_priceable(dtype, self.num_devices)
        self._check_tokens()
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

    def _check_tokens(self) -> None:
        cached, phase = self.cached_prefix, self.phase
        if cached and phase != "prefill":
            raise ValueError(f"cached-prefix: found {cached} in {phase}, expected a prefill")
        if not 0 <= cached < self.context:
            raise ValueError(
                f"cached-prefix: found {cached}, expected less than the context of {self.context}"
            )
        if self.draft is not None and phase != "decode":
            raise ValueError(f"draft: found one in {phase}, expected a decode")

    def _check_ranks(self) -> None:
        p, model = self.parallel, self.model
        split = {"attention heads": (model.attention.num_heads, p.tensor_parallel)}
        split |= {width: (getattr(model, width), split_of(p, width)) for width in WIDTHS}
        for name, (size, ranks) in split.items():
            if size % ranks:
                of = "tp" if ranks == p.tensor_parallel else "gpus / ep"
                raise ValueError(f"{of}: found {ranks}, expected a divisor of {name} = {size}")
        experts = model.num_experts + p.redundant_experts
        if self.is_dense and max(p.expert_parallel, 1 + p.redundant_experts) > 1:
            raise ValueError(f"ep: found {p.expert_parallel}, expected 1: {model.name} is dense")
        if not self.is_dense and p.expert_parallel > experts:
            raise ValueError(f"ep: found {p.expert_parallel}, expected at most {experts} experts")
        if p.pipeline_parallel > self.layers:
            raise ValueError(
                f"pp: found {p.pipeline_parallel}, expected at most {self.layers} layers"
            )
        p.nodes_on(self.hardware)

    def _check_layers(self) -> None:
        found, most = self.num_layers, self.model.num_layers
        least = 1 if self.is_dense else self.model.moe_layers_among(most)[0] + 1
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

    @functools.cached_property
    def rank(self) -> ModelSpec:
        """Model that the fullest rank computes."""
        group = weight_type(self.expert_weights).group if self.expert_weights in PADDED else 1
        return rank_model(self.model, self.parallel, group)

    @property
    def num_devices(self) -> int:
        """Number of GPUs."""
        return self.parallel.num_devices

    @property
    def is_dense(self) -> bool:
        """Whether no layer of the model has experts."""
        return not self.model.num_moe_layers

    @property
    def is_mla(self) -> bool:
        """Whether attention is multi-head latent attention."""
        return self.model.attention.kind == "mla"

    @property
    def layers(self) -> int:
        """Number of layers that the step runs."""
        return self.moe_layers + self.dense_layers

    @property
    def dense_layers(self) -> int:
        """Number of layers without experts that the step runs."""
        if self.level != "model":
            return int(self.is_dense)
        return (self.num_layers or self.model.num_layers) - self.moe_layers

    @property
    def moe_layers(self) -> int:
        """Number of layers with experts that the step runs."""
        if self.level != "model":
            return int(not self.is_dense)
        return len(self.model.moe_layers_among(self.num_layers or self.model.num_layers))

    @property
    def windowed_layers(self) -> float:
        """Number of layers that the step runs and whose attention looks back a window only.

        Level "decoder" is the mean of the model's MoE layers, of all layers of a dense model, so it
        has a share of one.
        """
        model = self.model
        if self.level == "moe":
            return 0.0
        layers = self.num_layers or model.num_layers
        windowed = {*model.attention.windowed_among(layers)}
        if self.level == "model":
            return len(windowed)
        alike = {*(range(layers) if self.is_dense else model.moe_layers_among(layers))}
        return len(windowed & alike) / len(alike)

    @property
    def new_tokens(self) -> int:
        """Tokens of each sequence that enter a step."""
        if self.phase == "decode":
            return 1 + (self.draft.tokens if self.draft else 0)
        return self.context - self.cached_prefix

    @property
    def tokens_per_step(self) -> float:
        """Tokens that a decode step adds to each sequence: with a draft, the accepted ones too."""
        return self.draft.tokens_per_step if self.draft else 1.0

    def workload(self, batch: int) -> Workload:
        """Workload of `batch` sequences on all devices."""
        return Workload(
            phase=self.phase,
            level="moe" if self.level == "moe" else "decoder",
            batch=batch,
            sequence_length=self.new_tokens,
            context_length=self.context if self.phase == "decode" else self.cached_prefix,
        )

    def rank_workload(self, batch: int) -> Workload:
        """Workload of the ranks with the most sequences."""
        return self.workload(math.ceil(batch / self.parallel.replicas))

    def head_positions(self, batch: int) -> int:
        """Positions that need logits: all that are trained or written, else the last of each."""
        return batch * (1 if self.phase == "prefill" else self.new_tokens)
