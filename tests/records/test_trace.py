"""Traces in their file: what is written is read, and nothing else is."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from traces import a_trace, independent_trace, small_model

from moebench.records.trace import ARRAYS, Trace, read_trace, write_trace


@pytest.fixture
def hand() -> Trace:
    """Two layers, five tokens in two sequences; a token without experts and one with three."""
    layers = [[[1, 0], [2], [3, 1], [0, 2], [1]], [[0], [], [2, 3, 1], [1], [0, 3]]]
    return a_trace(layers, [3, 2], small_model(4, 2), text_of=[0, 1])


def test_what_a_hand_made_trace_says(hand: Trace) -> None:
    assert hand.num_tokens == 5
    assert hand.sequence.tolist() == [0, 0, 0, 1, 1]
    assert hand.position.tolist() == [0, 1, 2, 0, 1]
    assert hand.tokens_per_expert.tolist() == [[2, 3, 2, 1], [2, 2, 1, 2]]
    assert hand.marginals[0].tolist() == [0.4, 0.6, 0.4, 0.2]
    assert hand.experts[1].tolist() == [[0, 4, 4], [4, 4, 4], [2, 3, 1], [1, 4, 4], [0, 3, 4]]


@pytest.mark.parametrize(("num_experts", "dtype"), [(4, "uint8"), (255, "uint8"), (256, "uint16")])
def test_a_file_says_what_was_written(tmp_path: Path, num_experts: int, dtype: str) -> None:
    trace = independent_trace([7, 1, 5], small_model(num_experts, 3))
    assert trace.experts.dtype == dtype
    write_trace(trace, tmp_path / "a.safetensors")
    found = read_trace(tmp_path / "a.safetensors")
    assert found.header == trace.header
    for name in ARRAYS:
        mine, theirs = getattr(trace, name), getattr(found, name)
        assert mine.dtype == theirs.dtype and (mine == theirs).all(), name


def test_no_byte_can_change_unnoticed(tmp_path: Path, hand: Trace) -> None:
    """Every byte of the file in turn, by one random bit pattern each."""
    path = tmp_path / "a.safetensors"
    write_trace(hand, path)
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    step = 17  # a prime, so that all parts of the header are met
    for place in range(0, len(whole), step):
        changed = bytearray(whole)
        changed[place] ^= int(rng.integers(1, 256))
        path.write_bytes(bytes(changed))
        with pytest.raises(ValueError, match=r"a\.safetensors: (damaged|found no trace)"):
            read_trace(path)


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path, hand: Trace) -> None:
    path = tmp_path / "a.safetensors"
    write_trace(hand, path)
    whole = path.read_bytes()
    for length in (0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"a\.safetensors: "):
            read_trace(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ValueError, match="damaged"):
        read_trace(path)


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(safetensors.numpy.save({"w": np.zeros(3)}, {"format": "pt"}))
    with pytest.raises(ValueError, match="found no trace, expected a file that python -m"):
        read_trace(path)
    path.write_bytes(b"# notes\n" * 100)
    with pytest.raises(ValueError, match="found no trace"):
        read_trace(path)
    with pytest.raises(ValueError, match="cannot be read"):
        read_trace(tmp_path / "absent.safetensors")


def test_a_trace_of_another_schema_is_refused(tmp_path: Path, hand: Trace) -> None:
    newer = Trace(replace(hand.header, schema=99), **{name: getattr(hand, name) for name in ARRAYS})
    write_trace(newer, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="found schema 99, expected 1"):
        read_trace(tmp_path / "a.safetensors")


def test_routing_that_cannot_be_is_refused(hand: Trace) -> None:
    def changed(name: str, place: tuple[int, ...], value: int) -> Trace:
        arrays = {each: getattr(hand, each).copy() for each in ARRAYS}
        arrays[name][place] = value
        return Trace(hand.header, **arrays)

    for name, place, value in [
        ("experts", (0, 0, 0), 4),  # an empty slot before a filled one
        ("experts", (0, 0, 0), 5),  # an expert that the model lacks
        ("experts", (0, 0, 1), 1),  # an expert twice
        ("k", (0, 0), 1),
        ("lengths", (0,), 2),
        ("text_of", (1,), 2),
        ("text_of", (0,), 1),
        ("token_class", (3,), 2),
    ]:
        changed(name, place, int(getattr(hand, name)[place]))
        if (name, value) == ("text_of", 1):
            value = 3
        with pytest.raises(ValueError, match=r": found .* expected "):
            changed(name, place, value)
