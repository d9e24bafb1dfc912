"""What is asked: the model, the machine, the workload, how the routers route, and one case of it.

Frozen dataclasses, read from TOML by `moebench.strict` and written to records as plain tables.
Names are those of published `config.json` files; an *assignment* is one (token, expert) pair
that costs compute.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from moebench.strict import from_mapping, read_toml
from moebench.units import (
    Bytes,
    BytesPerSecond,
    FlopsPerSecond,
    Hertz,
    Seconds,
    Watts,
    nearest,
)

MOST = {"num_layers": 2**12, "num_experts": 2**14}
"""Beyond any network; other sizes are bounded by `MOST_SIZE`."""
MOST_SIZE = 2**28
MOST_SKEW = 16.0
"""Exponent of a power law: all tokens on the first experts, long before."""
MOST_TOKENS = 2**40
"""Sequences, or tokens of one."""
DType = Literal["float32", "bfloat16", "float16", "float8"]
Phase = Literal["decode", "prefill", "train"]
Level = Literal["moe", "decoder"]
Launch = Literal["eager", "graph"]


@dataclass(frozen=True)
class Attention:
    """How tokens attend: grouped-query attention, or DeepSeek's multi-head latent attention (MLA).

    MLA's ranks and head sizes are described so that it can be counted and predicted; `moebench`
    does not execute it.
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
        require_at_least(1, self, *sizes, *(mla_sizes if self.kind == "mla" else ()))
        require_at_least(0, self, "query_rank", *mla_sizes)
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
        require_at_least(1, self, "num_groups", "top_k_groups")
        if self.top_k_groups > self.num_groups:
            raise ValueError(
                f"top_k_groups: found {self.top_k_groups}, expected at most "
                f"num_groups = {self.num_groups}"
            )
        if self.scale <= 0:
            raise ValueError(f"scale: found {self.scale}, expected more than 0")


@dataclass(frozen=True)
class ModelSpec:
    """What the network is. Sizes are those of the published checkpoint."""

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
    """As published; a test recomputes it."""
    active_parameters: Annotated[float, "count"] = 0.0
    """Per token, as published; a test recomputes it."""
    note: str = ""
    """What the published figures count and leave out."""

    def __post_init__(self) -> None:
        sizes = ("num_layers", "hidden_size", "intermediate_size", "num_experts", "top_k")
        require_at_least(1, self, *sizes, "vocab_size")
        require_at_least(
            0, self, "num_dense_layers", "dense_intermediate_size", "shared_intermediate_size"
        )
        if self.top_k > self.num_experts:
            raise ValueError(
                f"top_k: found {self.top_k}, expected at most num_experts = {self.num_experts}"
            )
        if self.num_dense_layers > self.num_layers:
            raise ValueError(
                f"num_dense_layers: found {self.num_dense_layers}, expected at most "
                f"num_layers = {self.num_layers}"
            )
        if self.num_dense_layers and not self.dense_intermediate_size:
            raise ValueError(
                "dense_intermediate_size: found 0, expected the width of the "
                f"{self.num_dense_layers} dense layers"
            )
        choosable = self.num_experts // self.gate.num_groups * self.gate.top_k_groups
        if self.num_experts % self.gate.num_groups or self.top_k > choosable:
            raise ValueError(
                f"gate.num_groups: found {self.gate.num_groups}, expected a divisor of "
                f"num_experts = {self.num_experts} that leaves top_k = {self.top_k} experts to "
                "choose from"
            )

    @property
    def published_name(self) -> str:
        """The name under which papers report on it, also for a narrow copy."""
        return self.name.partition("/")[0]

    @property
    def num_moe_layers(self) -> int:
        return self.num_layers - self.num_dense_layers

    @property
    def expert_matrices(self) -> int:
        """Weight matrices of one expert: gate, up and down, or up and down."""
        return 3 if self.is_gated else 2

    @property
    def expert_parameters(self) -> int:
        """Parameters of one routed expert."""
        return self.expert_matrices * self.hidden_size * self.intermediate_size


@dataclass(frozen=True)
class Interconnect:
    """The link between devices of one node, one direction."""

    name: str
    bandwidth: Annotated[BytesPerSecond, "bandwidth"]
    devices: int = 8
    """How many devices it joins: those of a node, or of a bridge."""


@dataclass(frozen=True)
class HardwareSpec:
    """What the machine could do: datasheet figures, dense peaks, or "measured here"."""

    name: str
    title: str
    kind: Literal["gpu", "cpu"]
    source: str
    peak: Mapping[str, Annotated[FlopsPerSecond, "rate"]]
    """Dense matmul peak per dtype, 2 FLOP a multiply-add, never 2:4-sparse."""
    memory_bandwidth: Annotated[BytesPerSecond, "bandwidth"]
    memory_capacity: Annotated[Bytes, "size"]
    cache: Annotated[Bytes, "size"]
    """Last-level cache: a GPU's L2, a CPU's L3."""
    aliases: tuple[str, ...] = ()
    nvml_names: tuple[str, ...] = ()
    num_processors: int = 1
    """Streaming multiprocessors of a GPU, cores of a CPU."""
    clock: Annotated[Hertz, "frequency"] | None = None
    """The clock at which the dense peak holds."""
    shared_memory: Annotated[Bytes, "size"] | None = None
    """Shared memory of one streaming multiprocessor."""
    compute_capability: str | None = None
    architecture: str | None = None
    power_limit: Annotated[Watts, "power"] | None = None
    idle_power: Annotated[Watts, "power"] | None = None
    interconnect: Interconnect | None = None
    launch_overhead: Annotated[Seconds, "time"] | None = None
    """Time of one small operation that does nothing else; None where nobody has measured it."""
    note: str = ""

    def __post_init__(self) -> None:
        require_at_least(1, self, "num_processors")
        for name in ("memory_bandwidth", "memory_capacity", "clock"):
            found = getattr(self, name)
            if found is not None and found <= 0:
                raise ValueError(f"{name}: found {found:g}, expected more than 0")
        for dtype, rate in self.peak.items():
            if rate <= 0:
                raise ValueError(
                    f"peak.{dtype}: found {rate:g}, expected more than 0 (leave out what it lacks)"
                )

    def peak_for(self, dtype: str) -> FlopsPerSecond:
        """Dense peak of a dtype.

        Raises:
            ValueError: the source gives no peak for it.
        """
        if dtype not in self.peak:
            raise ValueError(f"{self.name}: no peak for dtype {dtype!r}{nearest(dtype, self.peak)}")
        return self.peak[dtype]


@dataclass(frozen=True)
class Workload:
    """What is asked of the layer in one step."""

    phase: Phase
    level: Level
    batch: int
    """Sequences in flight."""
    sequence_length: int = 1
    """New tokens of each sequence; 1 in decode."""
    context_length: int = 0
    """Tokens of each sequence that are already in the KV cache; the cache does not grow."""
    dtype: DType = "bfloat16"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("batch", 1), ("sequence_length", 1), ("context_length", 0)):
            if not least <= getattr(self, name) <= MOST_TOKENS:
                raise ValueError(
                    f"{name}: found {getattr(self, name)!r:.40}, expected {least} to {MOST_TOKENS}"
                )

    @property
    def num_tokens(self) -> int:
        """Tokens that enter the layer in one step."""
        return self.batch * self.sequence_length

    @property
    def label(self) -> str:
        """Short name for tables: "decode b16", "prefill 1x1024", "train 1x512"."""
        if self.phase == "decode":
            return f"decode b{self.batch}"
        return f"{self.phase} {self.batch}x{self.sequence_length}"


@dataclass(frozen=True)
class OperatingPoint:
    """How a router routes: experts per token, and where they go.

    An untrained router's counts are artefacts of its initialisation, so a comparison states them.
    """

    k_distribution: tuple[float, ...]
    """Probability that a token runs 0, 1, 2, ... routed experts."""
    origin: Literal["imposed", "learned", "traced"]
    source: str
    """Paper and table of the mean, and the family that gives the rest of the distribution."""
    skew: float = 0.0
    """Expert e of N has a marginal proportional to (e + 1) ** -skew; 0 is uniform."""

    def __post_init__(self) -> None:
        if abs(sum(self.k_distribution) - 1) > 1e-6 or min(self.k_distribution) < 0:
            raise ValueError(
                f"k_distribution: found {self.k_distribution}, expected probabilities that sum to 1"
            )

    @property
    def mean_k(self) -> float:
        """Mean routed experts per token."""
        return sum(k * p for k, p in enumerate(self.k_distribution))


@dataclass(frozen=True)
class RouterSpec:
    """A router with the options its builder takes: one line of a cell."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""
    """What tables call it; the name and its distinguishing option if left out."""

    @property
    def title(self) -> str:
        return self.label or self.name


@dataclass(frozen=True)
class Case:
    """One workload under one router: what a record is about."""

    model: str
    router: RouterSpec
    workload: Workload
    operating_point: OperatingPoint
    backend: str
    """Expert execution: the name of a module of `moebench.experts`."""
    launch: Launch
    """Kernel by kernel, or as one replayed CUDA graph."""
    num_layers: int
    """Layers run one after the other in a step; latencies are per step, not per layer."""

    @property
    def key(self) -> str:
        """Identifies the case within a run: what --resume compares."""
        w = self.workload
        return (
            f"{self.model}/{w.level}/{w.phase}/b{w.batch}x{w.sequence_length}+{w.context_length}"
            f"/{w.dtype}/{self.router.title}/{self.backend}/{self.launch}/L{self.num_layers}"
        )


def require_at_least(least: int, spec: Any, *names: str) -> None:
    for name in names:
        found, most = getattr(spec, name), MOST.get(name, MOST_SIZE)
        if found < least:
            raise ValueError(f"{name}: found {found}, expected at least {least}")
        if found > most:
            raise ValueError(f"{name}: found {found}, expected at most {most}")


def shipped_folder(kind: str) -> Traversable:
    return files("moebench") / "data" / kind


@functools.cache
def shipped_names(kind: str) -> tuple[str, ...]:
    return tuple(
        sorted(
            entry.name[:-5]
            for entry in shipped_folder(kind).iterdir()
            if entry.name.endswith(".toml")
        )
    )


def model_names() -> tuple[str, ...]:
    """Names of the models that ship with moebench."""
    return shipped_names("models")


def hardware_names() -> tuple[str, ...]:
    """Names of the machines that ship with moebench."""
    return shipped_names("hardware")


def load_model(name: str) -> ModelSpec:
    """A model by its shipped name, or from a TOML file of one's own.

    Raises:
        ValueError: unknown name (with the nearest known one) or a bad file.
    """
    return cast(ModelSpec, load_shipped(ModelSpec, "models", name))


def load_hardware(name: str) -> HardwareSpec:
    """A machine by its shipped name or alias, or from a TOML file of one's own.

    Raises:
        ValueError: unknown name (with the nearest known one) or a bad file.
    """
    if name not in hardware_names() and not name.endswith(".toml"):
        aliases = hardware_aliases()
        if name not in aliases:
            raise ValueError(f"unknown hardware {name!r}{nearest(name, hardware_names())}")
        name = aliases[name]
    return cast(HardwareSpec, load_shipped(HardwareSpec, "hardware", name))


@functools.cache
def hardware_aliases() -> Mapping[str, str]:
    """Alias to shipped hardware name; NVML device names are aliases too."""
    aliases: dict[str, str] = {}
    for name in hardware_names():
        spec = load_shipped(HardwareSpec, "hardware", name)
        aliases |= dict.fromkeys((*spec.aliases, *spec.nvml_names), name)
    return aliases


@functools.cache
def load_shipped(cls: Any, kind: str, name: str) -> Any:
    if name.endswith(".toml"):
        return from_mapping(cls, read_toml(Path(name)), name)
    if name not in shipped_names(kind):
        known = shipped_names(kind)
        raise ValueError(f"unknown {kind.removesuffix('s')} {name!r}{nearest(name, known)}")
    entry = shipped_folder(kind) / f"{name}.toml"
    return from_mapping(cls, read_toml(Path(str(entry))), f"{kind}/{name}.toml")


def scaled_down(model: ModelSpec, factor: int) -> ModelSpec:
    """The same architecture `factor` times narrower: hidden, intermediate and head sizes.

    Used by quick suites; the number of experts, heads and the gate stay, so routing is the same.
    """
    if factor == 1:
        return model
    attention = replace(model.attention, head_dim=max(8, model.attention.head_dim // factor))
    return replace(
        model,
        name=f"{model.name}/{factor}",
        hidden_size=model.hidden_size // factor,
        intermediate_size=model.intermediate_size // factor,
        dense_intermediate_size=model.dense_intermediate_size // factor,
        shared_intermediate_size=model.shared_intermediate_size // factor,
        attention=attention,
        total_parameters=0.0,
        active_parameters=0.0,
    )
