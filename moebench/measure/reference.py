"""The reference operation: the same work in every run, as a unit of time for other runs.

Clocks, heat and neighbours make a machine faster on one day than on another. Times of a run are
therefore also given as multiples of one frozen operation that is timed in the same rounds: a
bfloat16 matrix product of 256 x 4096 by 4096 x 2048 and one pass over 128 MiB of fp32 words, so
that it depends on the machine's arithmetic and its memory. The time of each part is known: hosts
read memory at half their speed for minutes while their arithmetic is as fast as ever.

On a GPU a call repeats the operation until 5 ms of device time are full: one alone is 40
microseconds of work behind 15 of launches, and would normalise runs by their hosts.

Every change of the operation must increase its version; runs of different versions are not
compared. A processor's is 1. Version 2, of GPUs, is the same work, repeated.
"""

import functools

import torch
from torch.nn.functional import linear

from moebench.measure.clocks import Clock, CudaClock, StageTimer, clock_for, repeats_to_fill
from moebench.records.measurement import PRODUCT_FLOPS, READ_BYTES
from moebench.units import Seconds

SEED = 1
ROWS, INPUTS, OUTPUTS = 256, 4096, 2048


class ReferenceOperation:
    """The operation on one device: a call enqueues it `repeats` times; times are of one.

    Its 147 MiB are random: zeros multiply faster.
    """

    def __init__(self, device: torch.device) -> None:
        generator = torch.Generator(device).manual_seed(SEED)

        def normal(*shape: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device=device).normal_(generator=generator)

        self._x = normal(ROWS, INPUTS, dtype=torch.bfloat16)
        self._weight = normal(OUTPUTS, INPUTS, dtype=torch.bfloat16)
        self._words = normal(READ_BYTES // 4, dtype=torch.float32)
        self._device = device
        assert PRODUCT_FLOPS == 2 * ROWS * INPUTS * OUTPUTS
        clock = clock_for(device)
        self.version = 2 if isinstance(clock, CudaClock) else 1
        self.repeats = 1
        self.repeats = repeats_to_fill(self, clock)

    @torch.inference_mode()
    def __call__(self) -> None:
        self._timer = StageTimer(self._device)
        for _ in range(self.repeats):
            # In turns: after a pass over memory the product's weights are in no cache.
            self._words.sum()
            self._timer.mark("reading")
            linear(self._x, self._weight)
            self._timer.mark("product")

    def time(self, clock: Clock) -> Seconds:
        """Time of the operation now."""
        return clock.time(self) / self.repeats

    def reading(self) -> Seconds:
        """Time of the last call's pass over memory; the rest of `time` is the product's."""
        return self._timer.seconds()["reading"] / self.repeats


@functools.cache
def reference_operation(device: torch.device) -> ReferenceOperation:
    """The operation on a device, its arrays made once."""
    return ReferenceOperation(device)
