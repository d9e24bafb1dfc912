"""Arrays over cases: their numpy types, and one base for the dataclasses that hold them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

T = TypeVar("T", bound="OverCases")


class OverCases:
    """A dataclass whose arrays have one entry for each case along their first axis.

    Indexing and concatenating work on every array of the fields, also on those inside mappings
    and nested `OverCases`. A field that holds no array is a fact that all cases share.
    """

    def __len__(self) -> int:
        return len(next(value for value in vars(self).values() if isinstance(value, Array)))

    def __getitem__(self: T, index: Mask | Ints | slice) -> T:
        chosen = _mapped(lambda array: array[index], [vars(self)])
        return dataclasses.replace(self, **chosen)  # type: ignore[type-var]

    @classmethod
    def concatenate(cls: type[T], parts: Sequence[T]) -> T:
        """The cases of all parts in order; shared facts are those of the first part."""

        def joined(*arrays: Any) -> Any:
            first = arrays[0]
            if isinstance(first, OverCases):
                return type(first).concatenate(arrays)
            return np.concatenate(arrays)

        values = _mapped(joined, [vars(part) for part in parts])
        return dataclasses.replace(parts[0], **values)  # type: ignore[type-var]


Array = np.ndarray | OverCases


def _mapped(change: Callable[..., Any], tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Arrays of the tables changed key by key; other values are those of the first table."""
    found = {}
    for key, value in tables[0].items():
        if isinstance(value, Array):
            value = change(*(table[key] for table in tables))
        elif isinstance(value, Mapping):
            value = _mapped(change, [table[key] for table in tables])
        found[key] = value
    return found
