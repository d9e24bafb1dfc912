"""TOML into dataclasses: what fits is built, and what does not is named with its near miss."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moebench.spec.schema import decode, from_mapping, read_toml


@dataclass(frozen=True)
class Wheel:
    diameter: float
    spokes: int = 36


@dataclass(frozen=True)
class Cart:
    name: str
    color: Literal["red", "green"]
    top_speed: Annotated[float, "rate"]
    wheel: Wheel
    is_new: bool = False
    loads: tuple[int, ...] = ()
    spares: tuple[Wheel, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    limits: Mapping[str, Annotated[float, "power"]] = field(default_factory=dict)
    rest: Annotated[float, "time"] | None = None

    def __post_init__(self) -> None:
        if self.wheel.diameter < 0:
            raise ValueError(f"wheel.diameter: found {self.wheel.diameter}, expected at least 0")


def table(**changes: Any) -> dict[str, Any]:
    plain = {"name": "c", "color": "red", "top_speed": "2 FLOP/s", "wheel": {"diameter": 1}}
    return plain | changes


def test_a_table_becomes_a_dataclass() -> None:
    cart = from_mapping(
        Cart,
        table(
            loads=[1, 2],
            spares=[{"diameter": 2.5, "spokes": 3}],
            options={"any": [1, "x"]},
            limits={"hot": "2 kW"},
            rest="5 ms",
        ),
        "cart.toml",
    )
    assert cart == Cart(
        "c",
        "red",
        2.0,
        Wheel(1.0),
        loads=(1, 2),
        spares=(Wheel(2.5, 3),),
        options={"any": [1, "x"]},
        limits={"hot": 2000.0},
        rest=0.005,
    )
    assert isinstance(cart.wheel.diameter, float)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"nmae": 1}, "cart.toml: unknown key 'nmae'; did you mean 'name'?"),
        ({"color": "rde"}, "cart.toml: color: found 'rde', expected one of 'red', 'green'; did"),
        ({"color": ["red"]}, "cart.toml: color: found ['red'], expected one of"),
        ({"name": 1}, "cart.toml: name: found 1, expected a string"),
        ({"top_speed": 2}, "top_speed: found 2, expected a string such as '989.4 TFLOP/s'"),
        ({"top_speed": "2 GB"}, "cart.toml: top_speed: found unit 'GB' in '2 GB', expected"),
        ({"wheel": 3}, "cart.toml: wheel: found 3, expected a table"),
        ({"wheel": {}}, "cart.toml: wheel: missing key 'diameter', expected a number"),
        ({"wheel": {"diameter": 1, "spokes": 3.0}}, "spokes: found 3.0, expected an integer"),
        ({"wheel": {"diameter": 1, "spokes": True}}, "spokes: found True, expected an integer"),
        ({"wheel": {"diameter": "1"}}, "diameter: found '1', expected a number"),
        ({"wheel": {"diameter": True}}, "diameter: found True, expected a number"),
        ({"wheel": {"diameter": float("nan")}}, "diameter: found nan, expected a finite number"),
        ({"wheel": {"diameter": 10**400}}, "expected a finite number"),
        ({"wheel": {"diameter": -1}}, "cart.toml: wheel.diameter: found -1.0, expected at least"),
        ({"is_new": 1}, "cart.toml: is_new: found 1, expected true or false"),
        ({"loads": 1}, "cart.toml: loads: found 1, expected a list, each an integer"),
        ({"loads": [1, "x"]}, "cart.toml: loads[1]: found 'x', expected an integer"),
        (
            {"spares": [{"diameter": 1, "spoks": 1}]},
            "cart.toml: spares[0]: unknown key 'spoks'; di",
        ),
        ({"limits": {"hot": "2 GB"}}, "cart.toml: limits.hot: found unit 'GB'"),
        ({"limits": [1]}, "cart.toml: limits: found [1], expected a table"),
        ({"rest": 5}, "cart.toml: rest: found 5, expected a string such as '2 s'"),
    ],
)
def test_a_mistake_is_refused_with_file_key_found_and_expected(
    changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError) as refusal:
        from_mapping(Cart, table(**changes), "cart.toml")
    assert complaint in str(refusal.value)
    assert str(refusal.value).startswith("cart.toml: ")


def test_a_missing_key_says_what_was_expected() -> None:
    with pytest.raises(ValueError, match=r"cart\.toml: missing key 'top_speed', expected a string"):
        from_mapping(Cart, {"name": "c", "color": "red", "wheel": {"diameter": 1}}, "cart.toml")


def test_all_that_is_wrong_is_said_at_once() -> None:
    given = {"nmae": 1, "name": "c", "color": "blue", "wheell": 2, "wheel": {"spokes": 1.5}}
    with pytest.raises(ValueError) as refusal:
        from_mapping(Cart, given, "cart.toml")
    assert str(refusal.value) == (
        "cart.toml: 5 problems: (1) unknown key 'nmae'; did you mean 'name'? "
        "(2) unknown key 'wheell'; did you mean 'wheel'? "
        "(3) color: found 'blue', expected one of 'red', 'green' "
        "(4) missing key 'top_speed', expected a string such as '989.4 TFLOP/s' "
        "(5) wheel: 2 problems: (1) missing key 'diameter', expected a number "
        "(2) spokes: found 1.5, expected an integer"
    )


def test_the_case_of_a_choice_does_not_matter_in_a_file_that_people_write() -> None:
    assert from_mapping(Cart, table(color="Red"), "cart.toml").color == "red"
    written = {"name": "c", "color": "Red", "top_speed": 2.0, "wheel": {"diameter": 1}}
    with pytest.raises(ValueError, match="color: found 'Red'"):
        decode(Cart, written, "record")


def test_what_is_not_a_table_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cart\.toml: found \[\], expected a table"):
        from_mapping(Cart, [], "cart.toml")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"a = ", "not valid TOML"),
        (b"a = 1\na = 2\n", "not valid TOML"),
        (b'a = "\xff"', "not UTF-8 text"),
        (b"a = " + b"[" * 5000, "not valid TOML: nested too deeply"),
        (b"a = 1" + b"0" * 5000, "not valid TOML"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "suite.toml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=complaint) as refusal:
        read_toml(path)
    assert str(path) in str(refusal.value)


def test_a_missing_file_or_a_folder_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.toml", tmp_path):
        with pytest.raises(ValueError, match="cannot be read") as refusal:
            read_toml(path)
        assert str(path) in str(refusal.value)


SCALARS = (
    st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.datetimes()
    | st.sampled_from(["red", "2 s", "2 FLOP/s", "1 W", -1, 0, 10**400])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["diameter", "spokes", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = st.sampled_from([*Cart.__dataclass_fields__, "wheels", ""])


@given(changes=st.dictionaries(KEYS, VALUES, max_size=3), dropped=st.sets(KEYS, max_size=1))
def test_any_table_gives_an_object_or_a_complaint(
    changes: dict[str, Any], dropped: set[str]
) -> None:
    values = {key: value for key, value in table(**changes).items() if key not in dropped}
    try:
        cart = from_mapping(Cart, values, "cart.toml")
    except ValueError as refusal:
        assert str(refusal).startswith("cart.toml: ")
    else:
        assert type(cart.wheel.diameter) is float
        assert type(cart.wheel.spokes) is int
        assert all(type(load) is int for load in cart.loads)
        assert cart.color in ("red", "green")
