"""A processor's package energy from Linux's powercap tree, whose counters wrap."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moebench.measure.nvml import Fault


@contextmanager
def _readable() -> Iterator[None]:
    """Turn errors of reading into a Fault."""
    try:
        yield
    except PermissionError as error:
        text = "no_permission: the kernel lets only root read RAPL's energy_uj"
        raise Fault("no-permission", text) from error
    except (OSError, ValueError) as error:
        raise Fault("rapl-unreadable", f"RAPL cannot be read: {error}") from error


class Rapl:
    """Package energy of all sockets, without the domains' parts and without the platform.

    It includes whatever else runs on the sockets, and memory only where the package domain does.
    """

    def __init__(self, root: Path):
        domains = sorted(root.glob("intel-rapl:*"))
        with _readable():
            self.domains = [d for d in domains if (d / "name").read_text().startswith("package")]
            self._range = [int((d / "max_energy_range_uj").read_text()) for d in self.domains]
            self._last = self._raw()
        self._total = 0

    def _raw(self) -> list[int]:
        return [int((domain / "energy_uj").read_text()) for domain in self.domains]

    def joules(self) -> float:
        """Energy since this object was made; the kernel gives microjoules."""
        with _readable():
            raw = self._raw()
        for before, after, full in zip(self._last, raw, self._range, strict=True):
            step = after - before if after >= before else after - before + full
            # A wrap leaves a small step; a counter that was set to zero leaves a huge one.
            if step > full // 10:
                raise Fault("counter-reset", "the RAPL counter was reset during the window")
            self._total += step
        self._last = raw
        return self._total * 1e-6

    def watts(self) -> float:
        raise Fault("not-supported", "RAPL has no reading of power")

    def state(self) -> dict[str, Any]:
        return {}

    def throttled(self) -> dict[str, float]:
        return {}
