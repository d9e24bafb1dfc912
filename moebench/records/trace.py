"""Traces: which experts each token of a text ran, layer by layer, in one safetensors file.

The file has a tensor for each array of a `Trace` and, in its metadata, a `TraceHeader` as JSON with
the SHA-256 of the whole file, in which the hash itself counts as 64 zeros. Every changed byte is
found when the file is read.
"""

import functools
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from moebench.files import replace_file
from moebench.spec.model import ModelSpec
from moebench.spec.schema import decode, encode

TRACE_SCHEMA = 1
KEY, HASH_KEY = "moebench.trace", "sha256"
NO_HASH = b"0" * 64
Experts = NDArray[np.uint8] | NDArray[np.uint16]


@dataclass(frozen=True)
class TracedText:
    """A text that was traced: one domain of traffic."""

    name: str
    sha256: str
    """Hash of the bytes that were traced."""


@dataclass(frozen=True, kw_only=True)
class TraceHeader:
    """What a trace is of."""

    model: ModelSpec
    checkpoint: str
    """Name of the checkpoint or training that was run."""
    checkpoint_sha256: str | None
    """Hash of its weights; None where they were not hashed."""
    router: str
    router_options: Mapping[str, Any] = field(default_factory=dict)
    layers: tuple[int, ...]
    """Layers of the model that were traced, in the order of the arrays."""
    texts: tuple[TracedText, ...]
    classes: tuple[str, ...] = ()
    """Names of the classes of tokens; empty: tokens were not classified."""
    schema: int = TRACE_SCHEMA


@dataclass(frozen=True, eq=False)
class Trace:
    """The routing of every token of some texts, cut into sequences that were run one by one."""

    header: TraceHeader
    experts: Experts
    """[layers, tokens, slots] experts by falling weight; `num_experts` in slots that are empty."""
    k: NDArray[np.uint8]
    """[layers, tokens] experts that a token ran: how many of its slots are filled."""
    lengths: NDArray[np.uint32]
    """[sequences] tokens of each sequence; tokens stand in this order."""
    text_of: NDArray[np.uint8]
    """[sequences] index of the sequence's text in the header, ascending."""
    token_class: NDArray[np.uint8]
    """[tokens] index of each token's class in the header; empty where it has none."""

    def __post_init__(self) -> None:
        experts, model = self.experts, self.header.model
        if experts.ndim != 3 or not experts.size or not len(self.lengths):
            raise ValueError(f"experts: found shape {experts.shape}, expected [layers, tokens, k]")
        layers, tokens, slots = experts.shape
        classified = (tokens,) if self.header.classes else (0,)
        self._check("k", self.k.shape, (layers, tokens))
        self._check("layers", len(self.header.layers), layers)
        self._check("tokens of the lengths", int(self.lengths.sum()), tokens)
        self._check("text_of", self.text_of.shape, self.lengths.shape)
        self._check("token_class", self.token_class.shape, classified)
        wrong = [
            ("lengths", self.lengths.min() < 1, "at least one token a sequence"),
            ("layers", not {*self.header.layers} <= {*range(model.num_layers)}, "the model's"),
            (
                "text_of",
                self.text_of.max() >= len(self.header.texts)
                or bool((np.diff(self.text_of.astype(int)) < 0).any()),
                f"ascending, below {len(self.header.texts)} texts",
            ),
            (
                "token_class",
                self.token_class.max(initial=0) >= max(1, len(self.header.classes)),
                f"below {len(self.header.classes)} classes",
            ),
            ("k", self.k.max() > slots, f"at most {slots} slots"),
        ]
        wrong.append(("experts", not _fills_slots(experts, self.k, model.num_experts), "each once"))
        for name, is_wrong, expected in wrong:
            if is_wrong:
                raise ValueError(f"{name}: found values out of range, expected {expected}")

    @staticmethod
    def _check(name: str, found: object, expected: object) -> None:
        if found != expected:
            raise ValueError(f"{name}: found {found}, expected {expected}")

    @property
    def num_tokens(self) -> int:
        """Tokens that were traced."""
        return int(self.k.shape[1])

    @functools.cached_property
    def starts(self) -> NDArray[np.int64]:
        """[sequences] first token of each sequence."""
        return np.concatenate(([0], np.cumsum(self.lengths, dtype=np.int64)[:-1]))

    @functools.cached_property
    def sequence(self) -> NDArray[np.int64]:
        """[tokens] sequence of each token."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @functools.cached_property
    def position(self) -> NDArray[np.int64]:
        """[tokens] place of each token in its sequence, from 0."""
        return np.arange(self.num_tokens) - self.starts[self.sequence]

    @functools.cached_property
    def tokens_per_expert(self) -> NDArray[np.int64]:
        """[layers, experts] assignments of each expert."""
        n = self.header.model.num_experts
        counts = [np.bincount(own.ravel(), minlength=n + 1)[:n] for own in self.experts]
        return np.array(counts)

    @property
    def marginals(self) -> NDArray[np.float64]:
        """[layers, experts] probability that a token runs each expert."""
        return np.asarray(self.tokens_per_expert / self.num_tokens)

    @property
    def source(self) -> str:
        """What was traced, as a sentence for tables."""
        h = self.header
        texts = ", ".join(f"{text.name} ({text.sha256[:12]})" for text in h.texts)
        return f"{h.router} of {h.checkpoint}, {self.num_tokens} tokens of {texts}"


def _fills_slots(experts: Experts, k: NDArray[np.uint8], num_experts: int) -> bool:
    """Whether each token's first k slots hold different experts and the others none."""
    filled = np.arange(experts.shape[-1]) < k[..., None]
    chosen: NDArray[np.bool_] = np.less(experts, num_experts)
    if (chosen != filled).any() or experts.max() > num_experts:
        return False
    ordered: NDArray[np.integer] = np.sort(experts, axis=-1)
    return not ((np.diff(ordered, axis=-1) == 0) & (ordered[..., 1:] < num_experts)).any()


def expert_dtype(num_experts: int) -> type[np.uint8] | type[np.uint16]:
    """The narrowest type that holds every expert and the mark of an empty slot."""
    return np.uint8 if num_experts < 2**8 else np.uint16


ARRAYS: Mapping[str, tuple[str, ...]] = {
    "experts": ("uint8", "uint16"),
    "k": ("uint8",),
    "lengths": ("uint32",),
    "text_of": ("uint8",),
    "token_class": ("uint8",),
}
"""Names of the file's tensors and their types."""


def write_trace(trace: Trace, path: Path) -> None:
    """Write a trace as one safetensors file, with the hash of the whole file inside it."""
    tensors = {name: np.ascontiguousarray(getattr(trace, name)) for name in ARRAYS}
    header = json.dumps(encode(trace.header), allow_nan=False)
    data = safetensors.numpy.save(tensors, {KEY: header, HASH_KEY: NO_HASH.decode()})
    place = _hash_place(data)
    assert place is not None
    found = sha256(data).hexdigest().encode()
    replace_file(path, data[:place] + found + data[place + len(found) :])


def read_trace(path: Path) -> Trace:
    """The trace of a file; a ValueError where it is another file, or one byte has changed."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    metadata = _metadata(data)
    if KEY not in metadata:
        raise ValueError(
            f"{path}: found no trace, expected a file that python -m moebench.trace wrote"
        )
    place = _hash_place(data)
    if place is None or not _is_whole(data, place):
        raise ValueError(f"{path}: damaged (its sha256 does not fit); trace it again")
    try:
        table = json.loads(metadata[KEY])
        schema = table.get("schema")
        if schema != TRACE_SCHEMA:
            raise ValueError(
                f"found schema {schema}, expected {TRACE_SCHEMA}: another version of moebench "
                "wrote it"
            )
        arrays = safetensors.numpy.load(data)
        for name, types in ARRAYS.items():
            found = str(arrays[name].dtype) if name in arrays else "none"
            if found not in types:
                raise ValueError(f"{name}: found {found}, expected an array of {types[0]}")
        return Trace(decode(TraceHeader, table, KEY), **{name: arrays[name] for name in ARRAYS})
    except (ValueError, SafetensorError) as error:
        raise ValueError(f"{path}: {error}") from error


def _metadata(data: bytes) -> Mapping[str, str]:
    """Metadata of a safetensors file; empty where it is none or has none."""
    if len(data) < 8:
        return {}
    (length,) = struct.unpack("<Q", data[:8])
    try:
        found = json.loads(data[8 : 8 + length])["__metadata__"]
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return {}
    is_text = isinstance(found, dict) and all(isinstance(value, str) for value in found.values())
    return found if is_text else {}


def _hash_place(data: bytes) -> int | None:
    """Where the hash stands in a file; None where it has none."""
    (length,) = struct.unpack("<Q", data[:8])
    mark = f'"{HASH_KEY}":"'.encode()
    # The header's JSON is escaped inside the metadata, so that its own keys do not look alike.
    place = data.find(mark, 8, 8 + length)
    return None if place < 0 else place + len(mark)


def _is_whole(data: bytes, place: int) -> bool:
    """Whether a file has the hash that it says."""
    end = place + len(NO_HASH)
    return sha256(data[:place] + NO_HASH + data[end:]).hexdigest().encode() == data[place:end]
