"""Units: SI base units inside, strings with a unit at the borders.

Every quantity in moebench is a float in the SI base unit that its type alias names. `quantity`
reads "3.35 TB/s" as TOML files and datasheets print it; `text` writes "12.3 ms" for people.
1 GB is 1e9 bytes, 1 GiB is 2**30 bytes; a multiply-add is 2 FLOP.
"""

import math
import re
import unicodedata
from collections.abc import Iterable
from typing import Literal, TypeAlias

Seconds: TypeAlias = float
Bytes: TypeAlias = float
Flops: TypeAlias = float
Joules: TypeAlias = float
Watts: TypeAlias = float
Hertz: TypeAlias = float
BytesPerSecond: TypeAlias = float
FlopsPerSecond: TypeAlias = float

Kind = Literal[
    "time", "size", "bandwidth", "flops", "rate", "power", "energy", "frequency", "count"
]

_KINDS: dict[Kind, tuple[str, str]] = {
    "time": ("s", "2 s"),
    "size": ("B", "80 GB"),
    "bandwidth": ("B/s", "3.35 TB/s"),
    "flops": ("FLOP", "6.56 TFLOP"),
    "rate": ("FLOP/s", "989.4 TFLOP/s"),
    "power": ("W", "700 W"),
    "energy": ("J", "1.5 J"),
    "frequency": ("Hz", "1.83 GHz"),
    "count": ("", "46.7 B"),
}
BASE_UNIT = {kind: unit for kind, (unit, _) in _KINDS.items()}
EXAMPLE = {kind: example for kind, (_, example) in _KINDS.items()}
"""A well-formed quantity of each kind, for error messages."""
BYTES_PER_ELEMENT: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2, "float8": 1}

_DECIMAL = {"p": 1e-12, "n": 1e-9, "µ": 1e-6, "u": 1e-6, "m": 1e-3, "": 1.0}
_DECIMAL |= {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
_COUNT = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
_NUMBER = re.compile(r"\s*([-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?)\s*([^\s\d].*?)?\s*")


def _units(kind: Kind) -> dict[str, float]:
    """Factor to the base unit of every unit that a quantity of this kind may have."""
    prefixes = _COUNT if kind == "count" else _DECIMAL
    if kind in ("size", "bandwidth"):
        prefixes = prefixes | _BINARY
    units = {prefix + BASE_UNIT[kind]: scale for prefix, scale in prefixes.items()}
    return units | ({"min": 60.0, "h": 3600.0} if kind == "time" else {})


def quantity(text: object, kind: Kind) -> float:
    """Read a quantity as a datasheet prints it: `quantity("3.35 TB/s", "bandwidth")` is 3.35e12.

    A count may be in billions: "46.7 B".

    Raises:
        ValueError: not a string, no number, no unit, a unit of another kind, or less than 0.
    """
    expected = f"a string such as {EXAMPLE[kind]!r}"
    match = _NUMBER.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"found {text!r}, expected {expected}")
    number, unit = float(match.group(1)), match.group(2) or ""
    scale = _units(kind).get(unit)
    if scale is None:
        what = f"unit {unit!r}" if unit else "no unit"
        raise ValueError(f"found {what} in {text!r}, expected {expected}")
    value = number * scale
    if value < 0 or not math.isfinite(value):
        raise ValueError(f"found {text!r}, expected {expected}, finite and not negative")
    return value


def text(value: float | None, kind: Kind, digits: int = 3) -> str:
    """A quantity for people: `text(0.0123, "time")` is "12.3 ms"; None is an en dash.

    Sizes take binary prefixes (GiB), everything else decimal ones.
    """
    if value is None:
        return "–"
    if value == 0 or not math.isfinite(value):
        return f"{value or 0} {BASE_UNIT[kind]}".strip()
    scales = {"count": _COUNT, "size": {"": 1.0, **_BINARY}}.get(kind, _DECIMAL)
    if kind == "time":
        scales = {name: scale for name, scale in scales.items() if scale <= 1}
    # A value that rounds up to 1 of the next prefix belongs to it: 999.96 ms is 1 s.
    prefix = max(
        (name for name in scales if float(f"{abs(value) / scales[name]:.{digits}g}") >= 1),
        key=lambda name: scales[name],
        default=min(scales, key=lambda name: scales[name]),
    )
    scaled = float(f"{value / scales[prefix]:.{digits}g}")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(scaled)))) if scaled else 0
    return f"{scaled:.{decimals}f} {prefix}{BASE_UNIT[kind]}".strip()


def printable(text: str) -> str:
    """A line of text in which nothing is hidden or moves the cursor.

    Control characters and direction marks become escapes, since a terminal obeys them unseen.
    """
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in ("Cc", "Cf", "Cs") else c
        for c in text
    )


def slug(name: str) -> str:
    """A device's name as a folder name: "Intel(R) Xeon(R) CPU @ 2.70GHz" is "intel-xeon"."""
    bare = re.sub(r"\((r|tm|c)\)|@.*?hz|\bcpu\b|\bprocessor\b|\d+-core\b", " ", name.lower())
    return re.sub(r"[^a-z0-9]+", "-", bare).strip("-") or "unknown"


def folded(name: str) -> str:
    """A name in lower case with hyphens: "H100_SXM" and "h100 sxm" are one name."""
    return re.sub(r"[\s_-]+", "-", name.strip().lower())


def same_name(name: str, known: Iterable[str]) -> str:
    """The known name that differs from `name` in case and separators at most, else `name`."""
    return next((one for one in known if folded(one) == folded(name)), name)


def nearest(name: str, known: Iterable[str]) -> str:
    """End of an error message: "; did you mean 'x'?", or the list of known names.

    Only a slip of the keyboard is put right, since a name that merely looks alike means something
    else: `h20` is not `h200`, `num_experts_per_tok` not `num_experts`. Known names that begin with
    `name` are all listed, because nobody can tell which was meant.
    """
    options, given = sorted(known), folded(name)
    begun = [one for one in options if given and _goes_on(given, folded(one))]
    if len(begun) > 1:
        return f"; did you mean one of {', '.join(begun)}?"
    most = 1 if len(given) < 12 else 2
    slips = {one: _slips(given, folded(one)) for one in options if _numbers(one) == _numbers(name)}
    close = begun or [one for one in slips if given and slips[one] == min(slips.values()) <= most]
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(options)}" if options else ""


def _goes_on(start: str, name: str) -> bool:
    """Whether a name begins so, without going on in the middle of a number."""
    is_cut = start[-1:].isdigit() and name[len(start) : len(start) + 1].isdigit()
    return name.startswith(start) and not is_cut


def _numbers(name: str) -> list[str]:
    return re.findall(r"\d+", name)


def _slips(a: str, b: str) -> int:
    """Letters left out, put in, changed, or swapped with the next: the edits from `a` to `b`.

    In a short name a changed letter makes another word, as top-p is not top-k; it counts twice.
    """
    change = 1 if len(a) > 5 else 2
    rows = [list(range(len(b) + 1))]
    for i, x in enumerate(a):
        row = [i + 1]
        for j, y in enumerate(b):
            row.append(min(row[j] + 1, rows[i][j + 1] + 1, rows[i][j] + change * (x != y)))
            if i and j and x == b[j - 1] and a[i - 1] == y:
                row[-1] = min(row[-1], rows[i - 1][j - 1] + 1)
        rows.append(row)
    return rows[-1][-1]
