"""Files of data/operations: fits of each operation and software, and the intervals."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moebench.calibrate.kernel_files import COMMAND, rounded, write_toml
from moebench.predict.operations.fits import INTERVALS, OperationFit
from moebench.predict.operations.nearest import Basis
from moebench.predict.operations.operation import Operation
from moebench.predict.operations.price import Bounds
from moebench.spec.schema import read_toml


def write_operation(operation: Operation, fits: Sequence[OperationFit], folder: Path) -> list[Path]:
    """Write one file for each software that runs an operation; returns the files."""
    by_software: dict[str, list[dict[str, Any]]] = {}
    key = lambda fit: (fit.software.version, fit.software.variant, fit.system)  # noqa: E731
    for fit in sorted(fits, key=key):
        by_software.setdefault(fit.software.name, []).append(rounded(dataclasses.asdict(fit)))
    note = f"Written by `{COMMAND}`; SI units. {operation.name}: see moebench/predict."
    return [
        write_toml(folder / f"{operation.name}.{name}.toml", {"note": note, "fit": entries})
        for name, entries in sorted(by_software.items())
    ]


def write_intervals(bounds: Mapping[str, Mapping[Basis, Bounds]], folder: Path) -> Path:
    """Write the bounds of some operations into intervals.toml; those of others stay."""
    path = folder / INTERVALS
    known = read_toml(path)["bounds"] if path.exists() else {}
    known |= {
        name: {basis: [list(ends) for ends in one] for basis, one in each.items()}
        for name, each in bounds.items()
    }
    what = "[5 %, 95 %] quantiles of log(measured / predicted) by regime of predicted time"
    note = f"Written by `{COMMAND} --intervals`: {what} (under 20 us, to 200 us, above)."
    return write_toml(path, rounded({"note": note, "bounds": dict(sorted(known.items()))}, ".4f"))
