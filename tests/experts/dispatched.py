"""What a step dispatches: its launches, and what a host would wait for on a GPU."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Launches(TorchDispatchMode):
    """Counts dispatched operations that are no views."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aliases = (returned.alias_info for returned in func._schema.returns)
        self.count += not any(alias is not None and not alias.is_write for alias in aliases)
        return func(*args, **(kwargs or {}))


class Waits(TorchDispatchMode):
    """Counts what a host would wait for on a GPU: values, and shapes that depend on values.

    `bincount` is a processor's alone, see `test_counts_do_not_wait_for_a_gpu`.
    """

    TAGS = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_mask = func is torch.ops.aten.index.Tensor and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        others = {torch.ops.aten.bincount.default, torch.ops.aten.index.Tensor}
        self.count += is_mask or bool(self.TAGS & set(func.tags) and func not in others)
        return func(*args, **(kwargs or {}))
