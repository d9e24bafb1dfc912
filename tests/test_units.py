"""Quantities: what is read, what is refused, and that writing then reading loses only digits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moebench.units import BASE_UNIT, EXAMPLE, Kind, nearest, quantity, same_name, text

KINDS: tuple[Kind, ...] = tuple(BASE_UNIT)


@pytest.mark.parametrize(
    ("written", "kind", "value"),
    [
        ("3.35 TB/s", "bandwidth", 3.35e12),
        ("3350 GB/s", "bandwidth", 3.35e12),
        ("80 GB", "size", 80e9),
        ("80 GiB", "size", 80 * 2**30),
        ("81559 MiB", "size", 81559 * 2**20),
        ("989.4 TFLOP/s", "rate", 989.4e12),
        ("2.25 PFLOP/s", "rate", 2.25e15),
        ("6.56 TFLOP", "flops", 6.56e12),
        ("1.83 GHz", "frequency", 1.83e9),
        ("700 W", "power", 700.0),
        ("1.5 mJ", "energy", 1.5e-3),
        ("8 min", "time", 480.0),
        ("3 us", "time", 3e-6),
        ("3 µs", "time", 3e-6),
        ("46.7 B", "count", 46.7e9),
        ("1024", "count", 1024.0),
        (" 1e3 s ", "time", 1000.0),
        (".5 s", "time", 0.5),
        ("2s", "time", 2.0),
    ],
)
def test_a_quantity_is_read_as_datasheets_print_it(written: str, kind: Kind, value: float) -> None:
    assert quantity(written, kind) == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize(
    ("written", "kind", "complaint"),
    [
        ("80", "size", "found no unit in '80', expected a string such as '80 GB'"),
        ("80 GHz", "size", "found unit 'GHz' in '80 GHz'"),
        ("80 gb", "size", "found unit 'gb'"),
        ("2 KiHz", "frequency", "found unit 'KiHz'"),
        ("many GB", "size", "found 'many GB'"),
        ("", "time", "found ''"),
        ("1 2 s", "time", "found"),
        ("-5 s", "time", "not negative"),
        ("1e400 s", "time", "finite"),
        ("1e300 PFLOP", "flops", "finite"),
        ("nan s", "time", "found 'nan s'"),
        ("46.7 G", "count", "found unit 'G'"),
        (80, "size", "found 80, expected a string such as '80 GB'"),
        (None, "power", "found None"),
        (True, "count", "found True"),
    ],
)
def test_anything_else_is_refused_with_an_example(
    written: object, kind: Kind, complaint: str
) -> None:
    with pytest.raises(ValueError, match="expected a string such as") as refusal:
        quantity(written, kind)
    assert complaint in str(refusal.value)


@pytest.mark.parametrize("kind", KINDS)
def test_the_example_of_an_error_message_is_well_formed(kind: Kind) -> None:
    assert quantity(EXAMPLE[kind], kind) > 0


@given(
    value=st.floats(min_value=1e-12, max_value=1e21),
    kind=st.sampled_from(KINDS),
    digits=st.integers(min_value=1, max_value=9),
)
def test_writing_then_reading_loses_only_the_digits_not_printed(
    value: float, kind: Kind, digits: int
) -> None:
    half_a_digit = 0.5 * 10.0 ** (1 - digits)
    assert quantity(text(value, kind, digits), kind) == pytest.approx(
        value, rel=half_a_digit * (1 + 1e-9)
    )


@given(value=st.floats(min_value=1e-3, max_value=1e15), kind=st.sampled_from(KINDS))
def test_a_written_number_has_at_most_four_digits_before_the_point(
    value: float, kind: Kind
) -> None:
    if kind != "time" or value < 1000:
        assert len(text(value, kind).split()[0].partition(".")[0]) <= 4


@pytest.mark.parametrize(
    ("value", "kind", "written"),
    [
        (0.0123, "time", "12.3 ms"),
        (0.99996, "time", "1.00 s"),
        (2**30, "size", "1.00 GiB"),
        (3.35e12, "bandwidth", "3.35 TB/s"),
        (46.7e9, "count", "46.7 B"),
        (0, "energy", "0 J"),
        (0, "count", "0"),
        (None, "energy", "–"),
        (float("inf"), "time", "inf s"),
        (-0.002, "time", "-2.00 ms"),
    ],
)
def test_a_quantity_is_written_for_people(value: float | None, kind: Kind, written: str) -> None:
    assert text(value, kind) == written


@given(written=st.text(max_size=20), kind=st.sampled_from(KINDS))
def test_no_text_makes_anything_but_a_number_or_a_complaint(written: str, kind: Kind) -> None:
    try:
        assert quantity(written, kind) >= 0
    except ValueError as refusal:
        assert "expected" in str(refusal)


def test_a_near_miss_is_suggested_and_a_far_one_gets_the_list() -> None:
    known = ("ada-k", "adamoe", "rmoe", "top-k")
    assert nearest("topk", known) == "; did you mean 'top-k'?"
    assert nearest("xyz", known) == "; known: ada-k, adamoe, rmoe, top-k"
    assert nearest("xyz", ()) == nearest("", ()) == ""


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("h20", ("h200-sxm",)),
        ("mi300x", ("b300-sxm",)),
        ("deepseek-v2", ("deepseek-v3",)),
        ("num_experts_per_tok", ("num_experts",)),
        ("hidden_act", ("hidden_size",)),
        ("top-p", ("top-k",)),
        ("num_hidden_layers", ("num_dense_layers",)),
    ],
)
def test_what_merely_looks_alike_is_not_suggested(name: str, known: tuple[str, ...]) -> None:
    assert "did you mean" not in nearest(name, known)


@pytest.mark.parametrize("name", ["naem", "nme", "namee", "NAME"])
def test_one_slip_of_the_keyboard_is_put_right(name: str) -> None:
    assert nearest(name, ("color", "name")) == "; did you mean 'name'?"


def test_case_and_separators_do_not_make_another_name() -> None:
    known = ("h100-sxm", "h200-sxm")
    assert same_name("H100_SXM", known) == same_name(" h100 sxm", known) == "h100-sxm"
    assert same_name("h100sxm", known) == "h100sxm"


def test_what_begins_with_the_name_is_suggested_all_together() -> None:
    known = ("A100-40GB", "a100-sxm", "h100-sxm")
    assert nearest("a100", known) == "; did you mean one of A100-40GB, a100-sxm?"
    assert nearest("a100-s", known) == "; did you mean 'a100-sxm'?"
