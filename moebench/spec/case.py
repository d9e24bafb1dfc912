"""What is asked: the workload, how the routers route, and one case of both.

An *assignment* is one (token, expert) pair that costs compute.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from moebench.spec.schema import check_range

DType = Literal["float32", "bfloat16", "float16", "float8"]
Phase = Literal["decode", "prefill", "train"]
Level = Literal["moe", "decoder"]
Launch = Literal["eager", "graph"]


@dataclass(frozen=True)
class Workload:
    """One step of a layer: phase, sizes and dtype."""

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
        check_range(self, "batch", "sequence_length", least=1)
        check_range(self, "context_length")

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
    """How a router routes: the number of experts per token, and which experts.

    An untrained router's counts are artefacts of its initialisation, so a comparison states them.
    """

    k_distribution: tuple[float, ...]
    """Probability that a token runs 0, 1, 2, ... routed experts."""
    origin: Literal["imposed", "learned", "traced"]
    source: str
    """Paper and table of the mean, and the family that the distribution is taken from."""
    skew: float = 0.0
    """Expert e of N has a marginal proportional to (e + 1) ** -skew; 0 is uniform."""
    expert_shares: tuple[float, ...] = ()
    """Popularity of each expert, on any scale, as a histogram of routing has it; empty: `skew`."""

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
    """Title in tables; the name if left out."""

    @property
    def title(self) -> str:
        return self.label or self.name


@dataclass(frozen=True)
class Case:
    """One workload under one router: the subject of a record."""

    model: str
    router: RouterSpec
    workload: Workload
    operating_point: OperatingPoint
    backend: str
    """Expert execution: the name of a module of `moebench.experts.weights`."""
    launch: Launch
    """Kernels are launched one by one, or as one replayed CUDA graph."""
    num_layers: int
    """Layers run in a step, one after the other; latencies are per step, not per layer."""

    @property
    def key(self) -> str:
        """Identifies the case within a run: what --resume compares."""
        w = self.workload
        return (
            f"{self.model}/{w.level}/{w.phase}/b{w.batch}x{w.sequence_length}+{w.context_length}"
            f"/{w.dtype}/{self.router.title}/{self.backend}/{self.launch}/L{self.num_layers}"
        )
