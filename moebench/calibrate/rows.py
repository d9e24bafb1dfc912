"""From a measured table to cases that the model prices: a group for each kernel and device."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moebench.calibrate.tables import LatencyTable
from moebench.predict.arrays import Floats
from moebench.predict.kernels.catalogue import Kernel
from moebench.predict.kernels.layer import LayerCases, roofline, shape_label
from moebench.predict.kernels.samplers import sampled_loads
from moebench.spec.hardware import HardwareSpec, load_hardware

LEAST_OF_ROOFLINE = 0.05
"""Measured latency over the roofline's; below, the row is in another unit. Replayed weights come
from L2, up to ten times faster than DRAM; the least of the development tables is 0.4."""
MOST_OF_ROOFLINE = 300
"""Measured latency over `LAUNCHES` and the roofline's; above, the row is in another unit. The most
of the development tables is 21."""
LAUNCHES = 100e-6
"""Seconds that a layer takes however tiny it is."""
NOT_MICROSECONDS = "column latency_us: not in microseconds"


@dataclass(frozen=True)
class Group:
    """The rows of one kernel on one device."""

    system: str
    """As the table names it."""
    hardware: HardwareSpec
    kernel: Kernel
    rows: NDArray[np.int64]
    """Indices into the table's well-formed rows."""
    cases: LayerCases
    shapes: tuple[str, ...]
    """Model shape of each row."""


def is_plausible(seconds: Floats, least: Floats) -> NDArray[np.bool_]:
    """Whether measured latencies can be in the unit that is taken for theirs.

    Args:
        seconds: measured.
        least: what a roofline allows.
    """
    low, high = LEAST_OF_ROOFLINE * least, MOST_OF_ROOFLINE * (least + LAUNCHES)
    return np.asarray((seconds >= low) & (seconds <= high))


def groups_of(
    table: LatencyTable, top_k: float | None = None, seconds: Floats | None = None
) -> tuple[list[Group], dict[str, NDArray[np.int64]]]:
    """Group a table's rows by device and kernel.

    Args:
        table: latencies or pairs.
        top_k: overrides the column `topk`, which the table of pairs does not have.
        seconds: latencies to check for plausibility, if wanted.

    Returns:
        The groups, and for each reason the rows that belong to none.
    """
    identities = list(
        zip(*(table.columns[name] for name in ("system", "framework", "version")), strict=True)
    )
    keys = list(
        zip(
            identities,
            table.columns["kernel_source"],
            table.numbers["gated"].tolist(),
            table.columns["moe_dtype"],
            strict=True,
        )
    )
    members: dict[object, list[int]] = {}
    for index, key in enumerate(keys):
        members.setdefault(key, []).append(index)
    found: list[Group] = []
    skipped: dict[str, list[int]] = {}
    for indices in members.values():
        first = indices[0]
        (system, framework, version), source, gated, dtype = keys[first]
        kernel = Kernel(framework, version, source, 3 if gated else 2, dtype)
        column = "system"
        try:
            hardware = load_hardware(system)
            column = "moe_dtype"
            hardware.peak_for(dtype)
        except ValueError as error:
            skipped.setdefault(f"column {column}: {error}", []).extend(indices)
            continue
        rows = np.array(indices, dtype=np.int64)
        group = _group(table, system, hardware, kernel, rows, top_k)
        if seconds is not None:
            odd = ~is_plausible(seconds[rows], roofline(hardware, group.cases))
            if odd.any():
                skipped.setdefault(NOT_MICROSECONDS, []).extend(rows[odd].tolist())
                if odd.all():
                    continue
                group = _group(table, system, hardware, kernel, rows[~odd], top_k)
        found.append(group)
    return found, {reason: np.array(rows) for reason, rows in skipped.items()}


def _group(
    table: LatencyTable,
    system: str,
    hardware: HardwareSpec,
    kernel: Kernel,
    rows: NDArray[np.int64],
    top_k: float | None,
) -> Group:
    def column(name: str) -> Floats:
        return table.numbers[name][rows]

    chosen = np.full(len(rows), float(top_k)) if top_k is not None else column("topk")
    distribution = [table.columns["distribution"][row] for row in rows]
    loads = sampled_loads(
        column("num_tokens").astype(int).tolist(),
        chosen.astype(int).tolist(),
        column("num_experts").astype(int).tolist(),
        column("moe_ep_size").astype(int).tolist(),
        distribution,
        kernel.collector,
    )
    cases = kernel.cases(
        hardware,
        loads,
        num_tokens=column("num_tokens"),
        hidden_size=column("hidden_size"),
        inner_size=column("inter_size") // column("moe_tp_size"),
        top_k=chosen,
        num_experts=column("num_experts"),
        expert_parallel=column("moe_ep_size"),
    )
    shapes = tuple(
        shape_label(*values)
        for values in zip(
            column("hidden_size"), column("inter_size"), chosen, column("num_experts"), strict=True
        )
    )
    return Group(system, hardware, kernel, rows, cases, shapes)
