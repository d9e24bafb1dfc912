"""Parallelism: how the GPUs of a deployment share its attention, its experts and its layers.

One rule covers all of it. The GPUs of a pipeline stage split attention `tensor_parallel` ways, and
so hold `replicas` copies of it, each with sequences of its own. The same GPUs spread the experts
over `expert_parallel` groups, and each group splits its experts' inner width over its GPUs.

- tp 4, ep 1: four GPUs split heads and inner widths.
- tp 1, ep 8: attention is data-parallel, every GPU holds an eighth of the experts (DeepSeek-V3).
- tp 4, ep 4, 4 GPUs: expert parallelism lies inside the tensor-parallel group.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from moebench.spec.hardware import HardwareSpec
from moebench.units import nearest

Exchange = Literal["deepep-ll", "deepep-normal", "allgather", "nvlink"]
"""How tokens reach experts on other GPUs: DeepEP's low-latency kernels send every copy of a token,
its normal ones and TensorRT-LLM's NVLink kernels send a token once to each GPU that needs it, and
an all-gather sends every token everywhere, then a reduce-scatter adds up."""
EXCHANGES: tuple[Exchange, ...] = get_args(Exchange)
MOST_DEVICES = 4096


@dataclass(frozen=True)
class Parallelism:
    """Number of GPUs and how they share the work; without `gpus` they are tp x ep x pp."""

    tensor_parallel: int = 1
    """Ranks that split attention heads, dense networks and shared experts."""
    expert_parallel: int = 1
    """Groups over which the experts are spread."""
    gpus: int | None = None
    """GPUs in all; None: tensor_parallel x expert_parallel x pipeline_parallel."""
    nodes: int | None = None
    """Nodes that the GPUs stand in; None: as few as the hardware's link allows, more than one only
    where its file names a network."""
    pipeline_parallel: int = 1
    """Stages that share out the layers."""
    redundant_experts: int = 0
    """Copies of busy experts beside the model's own, spread over the groups (EPLB)."""
    exchange: Exchange | None = None
    """How tokens reach experts on other GPUs; None: the engine's default."""
    chunks: int = 1
    """Chunks of tokens whose experts and exchange overlap (EPS-MoE, 2410.12247)."""
    has_two_batches: bool = False
    """Two halves of a batch take turns, so that one computes while the other is exchanged."""

    def __post_init__(self) -> None:
        tp, ep, pp = self.tensor_parallel, self.expert_parallel, self.pipeline_parallel
        if min(tp, ep) < 1:
            raise ValueError(f"tp and ep: found {tp} and {ep}, expected at least 1")
        for name, found, least in (
            ("pp", pp, 1),
            ("chunks", self.chunks, 1),
            ("redundant-experts", self.redundant_experts, 0),
        ):
            if not least <= found <= MOST_DEVICES:
                raise ValueError(f"{name}: found {found}, expected {least} to {MOST_DEVICES}")
        if not 1 <= self.num_devices <= MOST_DEVICES:
            raise ValueError(f"gpus: found {self.num_devices}, expected 1 to {MOST_DEVICES}")
        whole = f"of the {self.num_devices} GPUs"
        if self.num_devices % pp:
            raise ValueError(f"pp: found {pp}, expected a divisor {whole}")
        stage = f"of the {self.stage_devices} GPUs" + " of a pipeline stage" * (pp > 1)
        for name, size in (("tp", tp), ("ep", ep)):
            if self.stage_devices % size:
                raise ValueError(f"{name}: found {size}, expected a divisor {stage}")
        if self.nodes is not None and (self.nodes < 1 or self.num_devices % self.nodes):
            raise ValueError(f"nodes: found {self.nodes}, expected a divisor {whole}")
        if self.exchange not in (None, *EXCHANGES):
            raise ValueError(
                f"exchange: found {self.exchange!r}{nearest(str(self.exchange), EXCHANGES)}"
            )
        if self.chunks > 1 and self.has_two_batches:
            raise ValueError(
                f"chunks: found {self.chunks} beside two-batch overlap, expected one of the two"
            )

    @property
    def num_devices(self) -> int:
        """Number of GPUs."""
        groups = self.tensor_parallel * self.expert_parallel * self.pipeline_parallel
        return groups if self.gpus is None else self.gpus

    @property
    def stage_devices(self) -> int:
        """Number of GPUs of one pipeline stage."""
        return self.num_devices // self.pipeline_parallel

    @property
    def replicas(self) -> int:
        """Copies of attention, each with sequences of its own."""
        return self.stage_devices // self.tensor_parallel

    @property
    def expert_tensor(self) -> int:
        """Ranks that split the inner width of each expert."""
        return self.stage_devices // self.expert_parallel

    @property
    def exchange_ranks(self) -> int:
        """Ranks among which tokens are exchanged; 1 where every rank has all tokens already."""
        return 1 if self.replicas == 1 else max(self.expert_parallel, self.replicas)

    @property
    def summing_ranks(self) -> int:
        """Ranks over which the outputs of the experts are added up by an all-reduce."""
        tp = self.tensor_parallel
        return tp if self.replicas == 1 else min(self.expert_tensor, tp)

    def experts_of_rank(self, num_experts: int) -> int:
        """Experts of the fullest group: its share of the model's and of the redundant copies."""
        return math.ceil((num_experts + self.redundant_experts) / self.expert_parallel)

    def nodes_on(self, hardware: HardwareSpec) -> int:
        """Nodes that the GPUs stand in; more than the hardware's link joins need a network."""
        wire, n = hardware.interconnect, self.num_devices
        if n == 1:
            return 1
        if wire is None:
            raise ValueError(
                f"{hardware.name}: no interconnect is known, so {n} devices cannot be priced"
            )
        nodes = self.nodes or (math.ceil(n / wire.devices) if hardware.network else 1)
        if n / nodes > wire.devices:
            raise ValueError(
                f"nodes: found {nodes} of {hardware.name} for {n} GPUs, expected at least "
                f"{math.ceil(n / wire.devices)}: {wire.name} joins {wire.devices}"
            )
        return nodes

    def nodes_of(self, ranks: int, hardware: HardwareSpec) -> int:
        """Nodes that a group of consecutive ranks spans."""
        per_node = self.num_devices // self.nodes_on(hardware)
        return math.ceil(ranks / per_node)


def parallelism_of(num_gpus: int, tp: int, ep: int) -> Parallelism:
    """Parallelism of a published row, in which the number of GPUs decides.

    tp = ep = num_gpus: attention is split tp ways and experts are spread over the same GPUs; tp 1
    and ep = num_gpus: attention is data-parallel; ep 1: the experts' inner width is split.
    """
    return Parallelism(tp, ep, gpus=num_gpus)
