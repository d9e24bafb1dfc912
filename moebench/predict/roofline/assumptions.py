"""What the model of a kernel assumes of a GPU beyond its datasheet: no number here was fitted.

Each assumption has a low and a high end; a prediction is given for the middle and for the ends.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any


def _assumed(value: float, fast: float, slow: float, unit: str, basis: str) -> Any:
    return dataclasses.field(
        default=value, metadata={"fast": fast, "slow": slow, "unit": unit, "basis": basis}
    )


@dataclass(frozen=True)
class Assumptions:
    """Latencies and reachable shares, of every device here; `slow` and `fast` are their ends."""

    dram_latency: float = _assumed(
        0.9e-6,
        0.7e-6,
        1.2e-6,
        "s",
        "one load from DRAM on a busy device. Idle it takes about 0.3 us (480 clocks; pointer"
        " chasing, arXiv 2402.13499, from memory); queues triple it",
    )
    l2_latency: float = _assumed(
        0.3e-6,
        0.2e-6,
        0.45e-6,
        "s",
        "one load from L2 on a busy device. Idle: about 0.15 us (260 clocks; same source)",
    )
    bandwidth: float = _assumed(
        0.92, 0.95, 0.88, "of the datasheet", "what streaming reads reach; the rest is refresh"
    )
    l2_port: float = _assumed(
        48.0, 64.0, 40.0, "B/clock", "L2 to one multiprocessor; 64 is the width of the port"
    )
    launch: float = _assumed(
        1.5e-6, 1.0e-6, 2.5e-6, "s", "from the end of one kernel of a graph to the next one's start"
    )
    block_start: float = _assumed(
        0.5e-6,
        0.3e-6,
        0.8e-6,
        "s",
        "a program before its first load: scheduling, barriers, descriptors",
    )
    wgmma: float = _assumed(
        0.70, 0.80, 0.60, "of the tensor peak", "full tiles; power holds H100 below its peak"
    )
    tcgen05: float = _assumed(0.70, 0.80, 0.60, "of the tensor peak", "as wgmma; not known better")
    mma_sm80: float = _assumed(0.80, 0.90, 0.70, "of the tensor peak", "the instruction of sm_80")
    mma_sm90: float = _assumed(
        0.50,
        0.62,
        0.40,
        "of the tensor peak",
        "at most 0.62 on H100 (arXiv 2402.13499, from memory)",
    )
    mma_sm100: float = _assumed(
        0.22, 0.27, 0.17, "of the tensor peak", "sm_90's rate of a multiprocessor, on B200's peak"
    )

    @classmethod
    def fast(cls) -> "Assumptions":
        """Every assumption at its favourable end."""
        return cls(**{entry.name: entry.metadata["fast"] for entry in dataclasses.fields(cls)})

    @classmethod
    def slow(cls) -> "Assumptions":
        """Every assumption at its unfavourable end."""
        return cls(**{entry.name: entry.metadata["slow"] for entry in dataclasses.fields(cls)})

    def tensor_share(self, instruction: str, capability: int) -> float:
        """Share of the datasheet's tensor peak that full tiles of an instruction reach."""
        if instruction == "mma.sync":
            return {8: self.mma_sm80, 9: self.mma_sm90}.get(capability // 10, self.mma_sm100)
        return self.wgmma if instruction == "wgmma" else self.tcgen05
