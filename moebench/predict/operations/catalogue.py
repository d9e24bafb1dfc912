"""The operations that moebench prices, by name."""

from collections.abc import Mapping

from moebench.predict.operations.operation import Operation

ALL: tuple[Operation, ...] = ()
OPERATIONS: Mapping[str, Operation] = {operation.name: operation for operation in ALL}
