"""The state of a host in two runs, and how much of it each case feels.

A host may read memory at 27 GB/s for minutes and at 48 GB/s after that, while its arithmetic stays
as fast as it was. The reference operation shows both, in every round. A step that streams weights
follows the one, a step of many tokens the other, so that each case is divided by its own mixture:
the time in which the reference's two parts would move the case's bytes and compute its FLOPs.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from moebench.compare.intervals import Vector
from moebench.records.measurement import PRODUCT_FLOPS, READ_BYTES, Measurement
from moebench.records.record import Record
from moebench.units import Bytes, Flops, Seconds, text

STATE_TOLERANCE = 0.15
"""Memory read this much faster or slower than at another time is another state of the host."""


@dataclass(frozen=True)
class Footprint:
    """What a step of a case asks of memory and of arithmetic."""

    moved: Bytes
    flops: Flops

    def seconds(self, reading: Vector, product: Vector) -> Vector:
        """Time of a step at the speeds of the reference's pass over memory and of its product."""
        return np.asarray(self.moved / READ_BYTES * reading + self.flops / PRODUCT_FLOPS * product)


def footprint(record: Record) -> Footprint | None:
    """What the case asks by its prediction; None where an older one does not count bytes."""
    moved = record.estimate.bytes_moved
    return None if moved is None else Footprint(moved, record.estimate.flops)


def footprints(*runs: Mapping[str, Record]) -> Mapping[str, Footprint] | None:
    """A footprint of each case that all runs share, one for all runs: that of the first.

    None if a case has none, or if a run did not time the two parts of its reference operation.
    """
    found = {}
    for key, record in runs[0].items():
        of_runs = [records[key] for records in runs if key in records]
        own = footprint(record)
        if len(of_runs) < len(runs):
            continue
        if own is None or any(reading_seconds(one.measurement) is None for one in of_runs):
            return None
        found[key] = own
    return found


def reading_seconds(measurement: Measurement | None) -> Seconds | None:
    """Median time of the reference's pass over memory in the rounds of a case."""
    return None if measurement is None else measurement.reading


def read_speed(records: Mapping[str, Record]) -> float | None:
    """Bytes a second at which memory was read in a run: median over its cells."""
    cells = {record.cell: reading_seconds(record.measurement) for record in records.values()}
    known = [seconds for seconds in cells.values() if seconds is not None]
    return READ_BYTES / float(np.median(known)) if known else None


def state_label(a: Mapping[str, Record], b: Mapping[str, Record]) -> str | None:
    """What two runs in different states should be read with; None where the states agree."""
    speeds = read_speed(a), read_speed(b)
    if speeds[0] is None or speeds[1] is None:
        return None
    if abs(speeds[1] / speeds[0] - 1) <= STATE_TOLERANCE:
        return None
    one, other = (text(speed, "bandwidth") for speed in speeds if speed is not None)
    return (
        f"two states of the host: memory was read at {one} in A and at {other} in B; "
        "each case is divided by its own share of memory and arithmetic"
    )


def load_label(name: str, records: Iterable[Record]) -> str | None:
    """How many cells of a run were measured on a busy machine, and how busy; None for a quiet run.

    The reference operation waits for processors too, so dividing by it takes part of the load out.
    """
    cells = {record.cell: record.measurement for record in records}
    loads = [m.host for m in cells.values() if m is not None and m.host is not None]
    busy = [load for load in loads if load.is_busy]
    if not busy:
        return None
    worst = max(busy, key=lambda load: load.wanted)
    return (
        f"{name} was measured on a busy machine in {len(busy)} of {len(cells)} cells "
        f"({worst.finding} in the worst): its latencies are poor"
    )
