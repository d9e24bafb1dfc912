"""Steps that a host launches ahead of a GPU: from one wait to the next, the slower of both decides.

Launches are asynchronous. A host that takes 5 microseconds for each of 40 launches needs 200; the
device, which works meanwhile, shows only where it needs longer. Both meet where the host asks for
a value: it waits until the device has finished, and the device idles until the next launch. How
long the wait itself takes beyond that is not priced.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from moebench.predict.layers.op_price import Price
from moebench.spec.ops import Op
from moebench.units import Seconds


def between_waits(ops: Sequence[Op], prices: Sequence[Price], launch: Seconds) -> list[Price]:
    """Prices of a layer's ops as parts of eager steps, which follow one another without a gap.

    Args:
        ops: of one layer; each layer is followed by an equal one. An op ends with its waits.
        prices: what the device takes for each.
        launch: host's time for each launch.
    """
    found = list(prices)
    for segment in segments(ops):
        host = launch * sum(ops[i].launches for i in segment)
        device = sum(prices[i].seconds for i in segment)
        # After a wait the device idles until the first launch.
        idle = launch if any(op.waits for op in ops) else 0.0
        if host > idle + device:
            for i in segment:
                own = launch * ops[i].launches
                found[i] = Price(own, own, 0.0, 0.0, 0.0)
        elif idle:
            first = found[segment[0]]
            late = first.seconds + idle, first.overhead + idle
            found[segment[0]] = replace(first, seconds=late[0], overhead=late[1])
    return found


def segments(ops: Sequence[Op]) -> Iterator[list[int]]:
    """Indices of the ops from one wait to the next, of which the last goes on in the next layer."""
    ends = [place + 1 for place, op in enumerate(ops) if op.waits]
    if not ends:
        yield [*range(len(ops))]
        return
    for start, end in zip(ends, [*ends[1:], ends[0] + len(ops)], strict=True):
        yield [place % len(ops) for place in range(start, end)]
