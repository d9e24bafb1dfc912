"""The machine: peaks, bandwidth and sizes from its datasheet."""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, cast

from moebench.spec.config_keys import HARDWARE_KEYS
from moebench.spec.schema import check_range
from moebench.spec.shipped import load_shipped, shipped_names, unknown_name
from moebench.units import (
    Bytes,
    BytesPerSecond,
    FlopsPerSecond,
    Hertz,
    Seconds,
    Watts,
    folded,
    nearest,
)


@dataclass(frozen=True)
class Interconnect:
    """The link between devices of one node or rack, one direction."""

    name: str
    bandwidth: Annotated[BytesPerSecond, "bandwidth"]
    devices: int = 8
    """Number of devices that it joins: those of a node, of a bridge, or of a rack."""


@dataclass(frozen=True)
class Network:
    """The share of one device of what joins several nodes, one direction."""

    name: str
    bandwidth: Annotated[BytesPerSecond, "bandwidth"]


@dataclass(frozen=True)
class HardwareSpec:
    """The figures of a machine's datasheet, or those that were measured here."""

    name: str
    title: str
    kind: Literal["gpu", "cpu"]
    source: str
    peak: Mapping[str, Annotated[FlopsPerSecond, "rate"]]
    """Dense matmul peak per dtype, 2 FLOP a multiply-add, never 2:4-sparse."""
    memory_bandwidth: Annotated[BytesPerSecond, "bandwidth"]
    memory_capacity: Annotated[Bytes, "size"]
    cache: Annotated[Bytes, "size"]
    """Last-level cache: a GPU's L2 or Infinity Cache, a CPU's L3."""
    aliases: tuple[str, ...] = ()
    nvml_names: tuple[str, ...] = ()
    """Device names as drivers print them: NVML's, and torch's where NVML is not."""
    maker: str | None = None
    """Maker of a GPU: "NVIDIA", "AMD"; None where the file does not say (see `gpu_maker`)."""
    num_processors: int = 1
    """Streaming multiprocessors or compute units of a GPU, cores of a CPU."""
    clock: Annotated[Hertz, "frequency"] | None = None
    """The clock at which the dense peak holds."""
    shared_memory: Annotated[Bytes, "size"] | None = None
    """Shared memory of one streaming multiprocessor, local data share of one compute unit."""
    compute_capability: str | None = None
    """CUDA's version of an NVIDIA GPU; None for other makers."""
    architecture: str | None = None
    power_limit: Annotated[Watts, "power"] | None = None
    idle_power: Annotated[Watts, "power"] | None = None
    interconnect: Interconnect | None = None
    network: Network | None = None
    """What joins devices that the interconnect does not: InfiniBand or Ethernet."""
    launch_overhead: Annotated[Seconds, "time"] | None = None
    """Time of one small operation that moves almost no data; None where it was not measured."""
    note: str = ""

    def __post_init__(self) -> None:
        check_range(self, "num_processors", least=1)
        names = ("memory_bandwidth", "memory_capacity", "clock")
        figures = {name: getattr(self, name) for name in names}
        figures |= {f"peak.{dtype}": rate for dtype, rate in self.peak.items()}
        for name, found in figures.items():
            if found is not None and found <= 0:
                hint = " (leave out what it lacks)" * name.startswith("peak")
                raise ValueError(f"{name}: found {found:g}, expected more than 0{hint}")

    @property
    def gpu_maker(self) -> str | None:
        """Maker of a GPU, in capitals; one with a compute capability, CUDA's, is NVIDIA's."""
        return self.maker.upper() if self.maker else "NVIDIA" if self.compute_capability else None

    def is_built_like(self, other: "HardwareSpec") -> bool:
        """Whether both have multiprocessors of one kind: one compute capability, or architecture.

        The architecture decides where there is no compute capability.
        """
        own = self.compute_capability or self.architecture
        return own is not None and own == (other.compute_capability or other.architecture)

    def check_priceable(self, dtype: str, num_devices: int) -> None:
        """Refuse a machine without the figures that a price needs, all of them named at once."""
        missing = [] if dtype in self.peak else [self._no_peak(dtype)]
        missing += [
            f"{name} is missing, such as {example!r} ({purpose})"
            for name, example, purpose in (
                ("clock", "1.83 GHz", "how fast a kernel does what is no matmul"),
                ("shared_memory", "228 KiB", "of one multiprocessor: how many tiles it holds"),
            )
            if getattr(self, name) is None
        ]
        if num_devices > 1 and self.interconnect is None:
            missing.append(
                f"no interconnect is known over which {num_devices} devices exchange; "
                "[interconnect] has name, bandwidth (one way) and devices"
            )
        if missing:
            raise ValueError(f"{self.name}: {'; '.join(missing)}")

    def peak_for(self, dtype: str) -> FlopsPerSecond:
        """Dense peak of a dtype; one for which the source gives no peak is refused."""
        if dtype not in self.peak:
            raise ValueError(f"{self.name}: {self._no_peak(dtype)}")
        return self.peak[dtype]

    def _no_peak(self, dtype: str) -> str:
        return f"no peak for dtype {dtype!r}{nearest(dtype, self.peak)}"


def hardware_names() -> tuple[str, ...]:
    """Names of the machines that ship with moebench."""
    return shipped_names("hardware")


def load_hardware(name: str) -> HardwareSpec:
    """A machine by its shipped name or alias in any case, or from a TOML file."""
    if not name.lower().endswith(".toml"):
        by_name = {folded(alias): one for alias, one in hardware_aliases().items()}
        by_name |= {folded(one): one for one in hardware_names()}
        if folded(name) not in by_name:
            hint = nearest(name, _relatives(name)).replace("; known: ", "; of this chip: ")
            raise unknown_name("hardware", name, hint)
        name = by_name[folded(name)]
    return cast(HardwareSpec, load_shipped(HardwareSpec, "hardware", name, HARDWARE_KEYS))


def _relatives(name: str) -> list[str]:
    """Shipped machines of the same chip as a name: b300-sxm for b300, none of h200 for h20."""

    def chip(of: str) -> str:
        bare = re.sub(r"\b(nvidia|amd|geforce|instinct|tesla)-", "", folded(of))
        return re.match(r"[a-z-]*\d*(?:[a-z](?![a-z]))?", bare)[0]  # type: ignore[index]

    return [one for one in hardware_names() if chip(one) == chip(name)]


@functools.cache
def hardware_aliases() -> Mapping[str, str]:
    """The shipped hardware name of each alias; NVML device names are aliases too."""
    aliases: dict[str, str] = {}
    for name in hardware_names():
        spec = load_shipped(HardwareSpec, "hardware", name, HARDWARE_KEYS)
        aliases |= dict.fromkeys((*spec.aliases, *spec.nvml_names), name)
    return aliases
