"""Texts as tokens: their classes, and the sequences that are run."""

from pathlib import Path

import numpy as np
import pytest

from moebench.model.huggingface.tokens import Tokens, bytes_as_tokens
from moebench.trace.texts import (
    TokenText,
    classes_of,
    joined_classes,
    read_text,
    token_text,
)
from moebench.train.token_classes import CLASSES


def named(tokens: Tokens) -> list[str]:
    return [CLASSES["prose"][i] for i in classes_of(tokens, "prose")]


def test_a_token_is_of_the_class_of_its_first_byte_that_is_no_space() -> None:
    data = b"the cat, 12  "
    ends = np.array([3, 7, 8, 9, 11, 12, 13, 13])
    tokens = Tokens(data, np.zeros(8, np.int64), np.array([0, *ends[:-1]]), ends)
    assert named(tokens) == [
        *("function word", "content word", "punctuation", "space", "digit"),
        *("space", "space", "other"),  # the last token has no bytes
    ]


def test_bytes_are_tokens() -> None:
    text = token_text("a", "né 1".encode(), "prose", bytes_as_tokens)
    assert text.ids.tolist() == [110, 0xC3, 0xA9, 32, 49]
    names = [text.classes[i] for i in text.token_class]
    assert names == [*["content word"] * 3, "space", "digit"]


def test_sequences_are_spread_over_the_text_and_do_not_overlap() -> None:
    text = TokenText("a", "0", np.arange(103), ("other",), np.zeros(103, np.uint8))
    whole = text.sequences(10, 1000)
    assert [(s.start, s.stop) for s in whole[:2]] == [(0, 10), (10, 20)]
    for places, count in ((whole, 10), (text.sequences(10, 35), 3), (text.sequences(200, 999), 1)):
        assert len(places) == count
        assert all(a.stop <= b.start for a, b in zip(places, places[1:], strict=False))
        assert places[-1].stop <= 103
    assert text.sequences(200, 999) == [slice(0, 103)]


def test_classes_of_texts_of_two_kinds_are_told_apart() -> None:
    prose = token_text("a.txt", b"the cat", "prose", bytes_as_tokens)
    python = token_text("b.py", b"for x in y:", "python", bytes_as_tokens)
    names, found = joined_classes([prose, python])
    assert len(set(names)) == len(names)
    assert [names[i] for i in found[0][[0, 3, 4]]] == ["function word", "space", "content word"]
    assert [names[i] for i in found[1][[0, 3, 4, 10]]] == ["keyword", "space", "name", "operator"]


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"ab\xff")
    (tmp_path / "empty.txt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.bin: not UTF-8 text \(byte 2\)"):
        read_text(tmp_path / "a.bin", bytes_as_tokens)
    with pytest.raises(ValueError, match="empty.txt: found no token"):
        read_text(tmp_path / "empty.txt", bytes_as_tokens)
    with pytest.raises(ValueError, match=r"no\.txt: cannot be read"):
        read_text(tmp_path / "no.txt", bytes_as_tokens)
