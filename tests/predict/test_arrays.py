"""Arrays over cases: the parts of a whole, one after the other, are the whole."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from moebench.predict.arrays import Floats, OverCases


@dataclass(frozen=True)
class Inner(OverCases):
    wide: Floats


@dataclass(frozen=True)
class Outer(OverCases):
    inner: Inner
    table: Mapping[str, Floats]
    name: str


WHOLE = Outer(Inner(np.arange(10.0).reshape(5, 2)), {"x": np.arange(5.0)}, "all")


def test_parts_make_the_whole() -> None:
    again = Outer.concatenate([WHOLE[:2], WHOLE[2:]])
    np.testing.assert_equal(dataclasses.asdict(again), dataclasses.asdict(WHOLE))


def test_an_index_picks_the_same_cases_from_every_array() -> None:
    some = WHOLE[np.array([4, 0])]
    assert (len(some), some.name) == (2, "all")
    assert some.inner.wide[:, 0].tolist() == [8, 0]
    assert some.table["x"].tolist() == [4, 0]
