"""Measured rows as cases that the model prices: a group for each kernel and device."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moebench.calibrate.tables import LatencyTable
from moebench.predict.arrays import Floats, Ints, Mask, OverCases
from moebench.predict.kernels.catalogue import Kernel
from moebench.predict.kernels.layer import LayerCalls, LayerCases, layer_time, roofline, shape_label
from moebench.predict.kernels.parameters import Parameters
from moebench.predict.kernels.price import with_weights
from moebench.predict.kernels.samplers import Routed, sampled_loads
from moebench.predict.kernels.weights import MEASURED, nearest_measured
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
class Measured(OverCases):
    """Measured rows of one kernel on one device."""

    system: str
    """Name of the device in the table."""
    hardware: HardwareSpec
    kernel: Kernel
    rows: Ints
    """Indices into the table's well-formed rows."""
    cases: LayerCases
    shapes: NDArray[Any]
    """Model shape of each row, as `shape_label` writes it."""
    routing: NDArray[Any]
    """Distribution of each row's routing, by its name in the table."""
    seconds: Floats
    """Measured latency."""
    works: Mask
    """Rows that may be fitted: no failed tactics."""
    weights: str | None = None
    """Type of the weights where no layer of it is fitted: `kernel` is the nearest one."""

    @property
    def source(self) -> tuple[str, ...]:
        """Device and code path, which gated and two-matrix experts have in common."""
        return self.system, self.kernel.framework, self.kernel.version, self.kernel.source

    @property
    def is_parallel(self) -> Mask:
        """Rows under expert parallelism."""
        return np.asarray(self.cases.expert_parallel > 1)

    def predicted(self, parameters: Parameters) -> Floats:
        """Seconds, warm, as tables are measured."""
        return layer_time(parameters, self.hardware, self.cases, warm=True).seconds

    def log_error(self, parameters: Parameters) -> Floats:
        """log(measured / predicted)."""
        return np.log(self.seconds / self.predicted(parameters))

    def may_be_fitted(self, left_out: Sequence[str] = ()) -> Mask:
        """Rows that may be fitted when some model shapes are left out."""
        return np.asarray(self.works & ~np.isin(self.shapes, list(left_out)))


def by_source(groups: Sequence[Measured]) -> list[list[Measured]]:
    """Groups of one device, framework, version and source: gated experts and others."""
    found = defaultdict(list)
    for group in groups:
        found[group.source].append(group)
    return list(found.values())


def is_plausible(seconds: Floats, least: Floats) -> Mask:
    """Whether measured latencies are near enough to the least, a roofline's, to be in seconds."""
    low, high = LEAST_OF_ROOFLINE * least, MOST_OF_ROOFLINE * (least + LAUNCHES)
    return np.asarray((seconds >= low) & (seconds <= high))


def groups_of(
    table: LatencyTable, top_k: int | None = None
) -> tuple[list[Measured], dict[str, Ints]]:
    """Groups of rows by device and kernel, and for each reason the rows that belong to none.

    Args:
        table: layer latencies, or top-k pairs.
        top_k: which member of the pairs; None for a table of latencies, whose unit is checked.
    """
    names = ("system", "framework", "version", "kernel_source", "moe_dtype")
    keys = zip(*(table.columns[name] for name in names), table.numbers["gated"], strict=True)
    members: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        members[key].append(index)
    found: list[Measured] = []
    skipped: dict[str, list[int]] = defaultdict(list)
    for (system, framework, version, source, dtype, gated), indices in members.items():
        column = "system"
        try:
            hardware = load_hardware(system)
            column = "moe_dtype"
            is_own = dtype in MEASURED and dtype in hardware.peak
            measured = dtype if is_own else nearest_measured(dtype, hardware)
            measured = measured if measured in hardware.peak else "bfloat16"
            hardware.peak_for(measured)
        except ValueError as error:
            skipped[f"column {column}: {error}"] += indices
            continue
        kernel = Kernel(framework, version, source, 3 if gated else 2, measured)
        group = _group(table, (system, hardware, kernel), np.array(indices), top_k)
        if dtype != measured:
            group = replace(group, cases=with_weights(group.cases, dtype, hardware), weights=dtype)
        if top_k is None:
            good = is_plausible(group.seconds, roofline(hardware, group.cases))
            if not good.all():
                skipped[NOT_MICROSECONDS] += group.rows[~good].tolist()
                group = group[good]
        if len(group):
            found.append(group)
    return found, {reason: np.array(rows) for reason, rows in skipped.items()}


def _group(
    table: LatencyTable, what: tuple[str, HardwareSpec, Kernel], rows: Ints, top_k: int | None
) -> Measured:
    _, hardware, kernel = what

    def column(name: str) -> Floats:
        return table.numbers[name][rows]

    chosen = column("topk") if top_k is None else np.full(len(rows), float(top_k))
    latency = "latency_us" if top_k is None else f"latency_us_top{top_k}"
    layer = (chosen, column("num_experts"))
    tokens, ranks = column("num_tokens"), column("moe_ep_size")
    counts = np.stack([tokens, *layer, ranks], axis=1).astype(int).tolist()
    distributions = [table.columns["distribution"][row] for row in rows]
    routed = [Routed._make((*each, name)) for each, name in zip(counts, distributions, strict=True)]
    inner = column("inter_size") // column("moe_tp_size")
    calls = LayerCalls(tokens, column("hidden_size"), inner, *layer, ranks)
    cases = kernel.cases(hardware, sampled_loads(routed, kernel.collector), calls)
    sizes = zip(column("hidden_size"), column("inter_size"), *layer, strict=True)
    return Measured(
        *what,
        rows,
        cases,
        np.array([shape_label(*size) for size in sizes]),
        np.array(distributions),
        column(latency) * 1e-6,
        column("slow_tactic") == 0,
    )
