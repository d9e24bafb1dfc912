"""The operations that moebench prices, by name."""

from collections.abc import Mapping

from moebench.predict.attention.decode import DECODE
from moebench.predict.attention.mla import MLA_DECODE, MLA_PREFILL
from moebench.predict.attention.mla_block import MLA_DECODE_BLOCK, MLA_PREFILL_BLOCK
from moebench.predict.attention.prefill import PREFILL
from moebench.predict.communication.collectives import (
    ALL_GATHER,
    ALL_REDUCE,
    ALL_TO_ALL,
    REDUCE_SCATTER,
)
from moebench.predict.communication.custom import CUSTOM_ALL_REDUCE
from moebench.predict.communication.exchange import LOW_LATENCY, NORMAL
from moebench.predict.communication.nvlink import NVLINK
from moebench.predict.operations.operation import Operation

ALL: tuple[Operation, ...] = (
    DECODE,
    PREFILL,
    MLA_DECODE,
    MLA_PREFILL,
    MLA_DECODE_BLOCK,
    MLA_PREFILL_BLOCK,
    ALL_REDUCE,
    ALL_GATHER,
    REDUCE_SCATTER,
    ALL_TO_ALL,
    CUSTOM_ALL_REDUCE,
    LOW_LATENCY,
    NORMAL,
    NVLINK,
)
OPERATIONS: Mapping[str, Operation] = {operation.name: operation for operation in ALL}
