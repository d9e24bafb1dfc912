"""Classes of bytes: a known snippet, alignment under UTF-8, and text that is broken."""

import numpy as np
import pytest

from moebench.train.token_classes import CLASSES, TextKind, token_classes

SNIPPET = b"""def f(x):  # one
    return len(x) + 0x1F, "a b"
"""
EXPECTED = [
    (b"def", "keyword"),
    (b" ", "space"),
    (b"f", "name"),
    (b"(", "operator"),
    (b"x", "name"),
    (b"):", "operator"),
    (b"  ", "space"),
    (b"# one", "comment"),
    (b"\n", "newline"),
    (b"    ", "indentation"),
    (b"return", "keyword"),
    (b" ", "space"),
    (b"len", "builtin"),
    (b"(", "operator"),
    (b"x", "name"),
    (b")", "operator"),
    (b" ", "space"),
    (b"+", "operator"),
    (b" ", "space"),
    (b"0x1F", "number"),
    (b",", "operator"),
    (b" ", "space"),
    (b'"a b"', "string"),
    (b"\n", "newline"),
]


def runs(data: bytes, kind: TextKind = "python") -> list[tuple[bytes, str]]:
    """Maximal pieces of one class."""
    classes = token_classes(data, kind)
    assert len(classes) == len(data)
    ends = [*(np.flatnonzero(np.diff(classes)) + 1).tolist(), len(data)]
    starts = [0, *ends[:-1]]
    return [
        (data[a:b], CLASSES[kind][classes[a]]) for a, b in zip(starts, ends, strict=True) if a < b
    ]


def test_a_known_snippet() -> None:
    assert runs(SNIPPET) == EXPECTED


def test_classes_stay_aligned_behind_characters_of_several_bytes() -> None:
    lead = 'süß = "日本語 €"  # ü\n'.encode()
    assert runs(lead + SNIPPET)[-len(EXPECTED) :] == EXPECTED
    assert runs(lead)[0] == ("süß".encode(), "name")
    assert ('"日本語 €"'.encode(), "string") in runs(lead)


@pytest.mark.parametrize(
    "broken",
    [
        b"  x = 'no end\n",
        b"    if x:\n  y\n",
        b"?? $ \x00\xff\n",
        b"x = (\n)]\n",
        b'"""',
        b"\\\n",
        b'"""\nin it\n"""\n?\n    x\n  y\n',
    ],
)
def test_source_behind_broken_lines_keeps_its_classes(broken: bytes) -> None:
    assert runs(broken + b"\n" + SNIPPET)[-len(EXPECTED) + 1 :] == EXPECTED[1:]


def test_source_before_a_broken_line_keeps_its_classes() -> None:
    doc = b'"""\nlen in it\n"""'
    found = runs(doc + b"\n    x\n  y\n" + SNIPPET)
    assert found[0] == (doc, "string") and found[-len(EXPECTED) :] == EXPECTED


def test_every_cut_of_a_source_has_classes() -> None:
    source = SNIPPET + b'"""\ndoc\n"""\nx = {\n  1: f"{y}",\n}\n'
    for start in range(len(source)):
        for end in range(start, len(source) + 1, 7):
            assert len(token_classes(source[start:end], "python")) == end - start


def test_prose() -> None:
    assert runs("The café’s 12 cats, don't!".encode(), "prose") == [
        (b"The", "function word"),
        (b" ", "space"),
        ("café".encode(), "content word"),
        ("’".encode(), "other"),
        (b"s", "content word"),
        (b" ", "space"),
        (b"12", "digit"),
        (b" ", "space"),
        (b"cats", "content word"),
        (b",", "punctuation"),
        (b" ", "space"),
        (b"don't", "content word"),
        (b"!", "punctuation"),
    ]
