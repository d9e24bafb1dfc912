"""Dense matmuls of measured tables: their groups by device, and fits of a device's library."""

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moebench.calibrate.fit import most_probable
from moebench.calibrate.rows import NOT_MICROSECONDS, is_plausible
from moebench.calibrate.tables import LatencyTable
from moebench.calibrate.widths import Residuals, bounds_of
from moebench.predict.arrays import Floats, Ints, OverCases
from moebench.predict.kernels.dense import (
    METADATA,
    DenseParameters,
    MatmulShapes,
    dense_parameters,
    dense_time,
)
from moebench.predict.kernels.intervals import Bounds
from moebench.spec.hardware import HardwareSpec, load_hardware
from moebench.units import BYTES_PER_ELEMENT

OWN = ("launch", "bandwidth", "tensor")
"""Parameters that are fitted for each device; all others are the library's."""
FOLDS = 4
"""Parts of the weight matrices that are left out in turn."""
NOISE = 0.1
"""Log error that the form of the model has even with its best parameters."""


@dataclass(frozen=True)
class DenseRows(OverCases):
    """Measured dense matmuls of one device."""

    hardware: HardwareSpec
    rows: Ints
    """Indices into the table's well-formed rows."""
    shapes: MatmulShapes
    seconds: Floats

    def thinned(self, count: int) -> "DenseRows":
        """At most `count` of the rows, always the same ones."""
        if len(self) <= count:
            return self
        return self[np.random.default_rng(0).choice(len(self), count, replace=False)]

    def log_error(self, parameters: DenseParameters) -> Floats:
        """log(measured / predicted)."""
        return np.log(self.seconds / dense_time(parameters, self.hardware, self.shapes))

    def residuals(self, parameters: DenseParameters) -> Residuals:
        """Errors of the rows, by the rows of their activations."""
        errors = self.log_error(parameters)
        return Residuals(None, "dense", self.hardware.name, self.shapes.m, errors)

    def fold(self) -> Ints:
        """The fold of each row; one weight matrix is in one fold, the same on every device."""
        sides = np.stack([self.shapes.n, self.shapes.k], axis=1).astype(np.int64)
        return np.array([zlib.crc32(side.tobytes()) % FOLDS for side in sides], dtype=np.int64)


def dense_groups(table: LatencyTable) -> tuple[list[DenseRows], dict[str, Ints]]:
    """Dense matmuls of each device, and for each reason the rows that belong to none."""
    found: list[DenseRows] = []
    skipped: dict[str, Ints] = {}
    systems = np.array(table.columns["system"])
    for system in sorted(set(systems.tolist())):
        here = np.flatnonzero(systems == system)
        try:
            hardware = load_hardware(system)
            peak = hardware.peak_for("bfloat16")
        except ValueError as error:
            skipped[f"column system: {error}"] = here
            continue
        m, n, k = (table.numbers[name][here] for name in ("m", "n", "k"))
        seconds = table.numbers["latency_us"][here] * 1e-6
        moved = BYTES_PER_ELEMENT["bfloat16"] * (m * n + n * k + m * k)
        least = np.maximum(moved / hardware.memory_bandwidth, 2 * m * n * k / peak)
        good = is_plausible(seconds, least)
        if not good.all():
            odd = skipped.get(NOT_MICROSECONDS, np.array([], dtype=np.int64))
            skipped[NOT_MICROSECONDS] = np.append(odd, here[~good])
        if good.any():
            found.append(DenseRows(hardware, here, MatmulShapes(m, n, k), seconds)[good])
    return found, skipped


def measured_matmuls(table: LatencyTable) -> dict[str, DenseRows]:
    """The rows of each device, by hardware name; rows without a price are named."""
    groups, skipped = dense_groups(table)
    table.say_unpriced(skipped)
    return {rows.hardware.name: rows for rows in groups}


def fit_library(devices: Mapping[str, DenseRows]) -> dict[str, DenseParameters]:
    """Fit one library on several devices: `OWN` parameters for each, the others shared."""
    thin = [device.thinned(250) for device in devices.values()]
    shared = [name for name in METADATA if name not in OWN]
    return dict(zip(devices, _fit(DenseParameters(), thin, shared), strict=True))


def fit_device(rows: DenseRows, library: DenseParameters) -> DenseParameters:
    """Fit a device's `OWN` parameters, all others being the library's."""
    return _fit(library, [rows.thinned(400)], [])[0]


def dense_widths(devices: Mapping[str, DenseRows]) -> dict[str, Bounds]:
    """Widths of intervals: on shapes, and on devices, that the fit left out.

    Whether the next device is faster or slower than its relatives is not known, so "device" is
    symmetrical. A single device says nothing about another: its widths are those of shapes.
    """
    shapes, unseen = [], []
    for fold in range(FOLDS):
        is_out = {name: rows.fold() == fold for name, rows in devices.items()}
        fits = fit_library({name: rows[~is_out[name]] for name, rows in devices.items()})
        for name, rows in devices.items():
            shapes.append(rows[is_out[name]].residuals(fits[name]))
    for name, rows in devices.items() if len(devices) > 1 else ():
        others = fit_library({other: devices[other] for other in devices if other != name})
        errors = rows.residuals(dense_parameters(rows.hardware, others)[0])
        unseen += [errors, dataclasses.replace(errors, log_error=-errors.log_error)]
    return {"shape": bounds_of(shapes), "device": bounds_of(unseen or shapes)}


def _fit(
    start: DenseParameters, devices: Sequence[DenseRows], shared: Sequence[str]
) -> list[DenseParameters]:
    names = [*shared, *OWN * len(devices)]

    def unpack(logs: Floats) -> list[DenseParameters]:
        values = np.exp(logs).tolist()
        common = dict(zip(shared, values[: len(shared)], strict=True))
        own = np.reshape(values[len(shared) :], (len(devices), len(OWN))).tolist()
        return [
            dataclasses.replace(start, **common, **dict(zip(OWN, row, strict=True))) for row in own
        ]

    def errors(logs: Floats) -> Floats:
        parts = zip(devices, unpack(logs), strict=True)
        return np.concatenate([rows.log_error(parameters) for rows, parameters in parts]) / NOISE

    mean = np.log([getattr(start, name) for name in names])
    spread = np.array([METADATA[name]["spread"] for name in names])
    ceiling = np.log([METADATA[name]["ceiling"] for name in names])
    found = most_probable(errors, mean, spread, ceiling=ceiling, x_scale=spread, max_nfev=30)
    return unpack(found)
