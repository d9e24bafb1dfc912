"""What an operation is: a kernel or collective that some software runs, and how it is priced."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from moebench.predict.arrays import Floats
from moebench.predict.parameters import metadata
from moebench.spec.hardware import HardwareSpec

Calls = Any
"""Arrays over cases, one class for each operation: what its `time` takes."""


@dataclass(frozen=True)
class Software:
    """What runs an operation: a framework or library, its release, and which of its kernels."""

    name: str
    """In lower case, as engines and libraries are called: "vllm", "nccl"."""
    version: str = ""
    variant: str = ""
    """What tells the kernels of one release apart, such as the kind of kernel or the cache's type;
    fits of one variant speak for the same variant elsewhere."""

    def __str__(self) -> str:
        return " ".join(filter(None, (self.name, self.version, self.variant)))


@dataclass(frozen=True)
class Operation:
    """A kernel or collective and the form of its time."""

    name: str
    """Name in files and tables: "attention-decode"."""
    parameters: type
    """Dataclass of its parameters, made with `moebench.predict.parameters.parameter`."""
    time: Callable[[Any, HardwareSpec, Calls, bool], Floats]
    """Seconds of calls, of parameters, machine, calls and `warm` (data left in L2 by replays)."""
    over_link: bool = False
    """Whether it runs over the link between devices, so that servers of one kind err together."""

    @property
    def facts(self) -> Mapping[str, Mapping[str, Any]]:
        """Prior, unit and ceiling of each parameter."""
        return metadata(self.parameters)
