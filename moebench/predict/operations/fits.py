"""Fits of operations, data/operations/*.toml: parameters by software and device."""

import functools
from dataclasses import dataclass
from typing import Any

from moebench.predict.kernels.catalogue import FitError
from moebench.predict.operations.operation import Operation, Software
from moebench.spec.schema import from_mapping, read_toml
from moebench.version import PACKAGE

FOLDER = PACKAGE / "data" / "operations"
INTERVALS = "intervals.toml"


@dataclass(frozen=True)
class OperationFit:
    """Parameters of an operation as one software runs it on one device, and their origin."""

    software: Software
    system: str
    """Shipped hardware name."""
    parameters: Any
    """An instance of the operation's `parameters`."""
    rows: int
    """Measured rows that were fitted."""
    error: FitError
    """On these rows."""
    table: str
    """File names of the measurements."""
    table_sha256: str
    """First 12 digits for each of them."""


@functools.cache
def shipped_operation_fits(operation: Operation) -> tuple[OperationFit, ...]:
    """Every fit of an operation that ships with moebench; none if it was never fitted."""
    found: list[OperationFit] = []
    for path in sorted(FOLDER.glob("*.toml")):
        if path.name == INTERVALS or not path.stem.startswith(f"{operation.name}."):
            continue
        for number, entry in enumerate(read_toml(path).get("fit", []), start=1):
            where = f"operations/{path.name}: [[fit]] {number}"
            values = dict(entry)
            own: Any = from_mapping(operation.parameters, values.pop("parameters", {}), where)
            fit = from_mapping(OperationFit, {"parameters": {}, **values}, where)
            found.append(OperationFit(**(vars(fit) | {"parameters": own})))
    return tuple(found)
