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
        return len(next(array for array in _fields(self).values() if _has_cases(array)))

    def __getitem__(self: T, index: Mask | Ints | slice) -> T:
        def chosen(array: Any) -> Any:
            return array[index]

        return dataclasses.replace(self, **_mapped(chosen, [_fields(self)]))  # type: ignore[type-var]

    @classmethod
    def concatenate(cls: type[T], parts: Sequence[T]) -> T:
        """The cases of all parts in order; shared facts are those of the first part."""

        def joined(*arrays: Any) -> Any:
            first = arrays[0]
            if isinstance(first, OverCases):
                return type(first).concatenate(arrays)
            return np.concatenate(arrays)

        values = _mapped(joined, [_fields(part) for part in parts])
        return dataclasses.replace(parts[0], **values)  # type: ignore[type-var]


def _fields(record: Any) -> dict[str, Any]:
    return {entry.name: getattr(record, entry.name) for entry in dataclasses.fields(record)}


def _has_cases(value: Any) -> bool:
    return isinstance(value, np.ndarray | OverCases)


def _mapped(change: Callable[..., Any], tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Arrays of the tables changed key by key; other values are those of the first table."""
    found = {}
    for key, value in tables[0].items():
        if _has_cases(value):
            value = change(*(table[key] for table in tables))
        elif isinstance(value, Mapping):
            value = _mapped(change, [table[key] for table in tables])
        found[key] = value
    return found
