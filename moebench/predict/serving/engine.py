"""The engine around the kernels: time of a step that no kernel explains, and kernels inside it.

A decode step replays a graph: between its kernels are short gaps and small kernels, and before it
the host schedules and samples. A prefill is launched kernel by kernel, so a short prompt waits for
the host. Benchmarks time kernels alone and of few weight types; what they take in an engine, in
other types, is a factor for streaming weights and one for arithmetic. All of it is fitted to
published time per token and time to first token, data/engine.toml.
"""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from moebench.predict.arrays import Floats, Ints, OverCases
from moebench.predict.parameters import metadata, parameter
from moebench.spec.schema import from_mapping, read_toml
from moebench.version import PACKAGE

FILE = PACKAGE / "data" / "engine.toml"
FIRST_OF_2025 = {"vllm": (0, 7), "sglang": (0, 5), "trtllm": (0, 17)}
"""First release of 2025 of each engine, as (major, minor). Before, hosts spent 5 to 7 ms on a step.

**Source**: release pages of the three projects (sglang 0.4.1 to 0.4.10 are taken as of 2024)."""
CURRENT, EARLY = "2025", "2024"
MIXING = ("vllm", "trtllm")
"""Engines whose prefills share a step with other sequences' decodes, so that weights are read once.

**Source**: vllm, `enable_chunked_prefill` (on by default); TensorRT-LLM, in-flight batching;
sglang, `--enable-mixed-chunk` (off by default)."""
LOOKS: Mapping[str, tuple[float, float]] = {"sglang": (10.0, 30.0)}
"""Decode steps after which an engine looks for new requests, as benchmarks run it with fewer than
`MANY` requests in flight and with more; others: one.

**Source**: InferenceMAX, `--scheduler-recv-interval` for DeepSeek-R1; sglang's default is 1."""
MANY = 16
ELEMENTWISE = 28.0
"""Bytes of activations that the elementwise kernels of a layer move for each element of the hidden
state: two norms with residuals, quantisation, activation, copies (14 accesses of 2 B)."""
SHARPNESS = 3.0
"""Exponent of the norms over what the GPU and the host take for a prefill, and over the arithmetic
and the streaming of a matrix product."""


@dataclass(frozen=True)
class EngineParameters:
    """One engine of one era; SI units."""

    step: float = parameter(1e-3, 0.7, "s", varies=0.5)
    """Host time of a step that the GPU waits for: scheduling, sampling, output."""
    sequence: float = parameter(2e-6, 0.7, "s", varies=0.3)
    """Host time of each sequence of a step."""
    gap: float = parameter(0.5e-6, 0.7, "s", varies=0.15)
    """From one kernel of a replayed graph to the next, small kernels that no stage has included."""
    launch: float = parameter(20e-6, 0.3, "s", varies=0.15)
    """Start of a kernel by the host, without a graph."""
    prefill: float = parameter(1.1, 0.1, "", varies=0.05)
    """Time of kernels in a prefill over their time alone: the clock under full power, odd sizes."""
    elementwise: float = parameter(10.0, 0.4, "B/clock", varies=0.15)
    """Rate at which one multiprocessor runs the elementwise kernels of a prefill."""
    request: float = parameter(20e-3, 0.4, "s", varies=0.1)
    """Time of a request outside the engine's steps: client, tokenisation, detokenisation."""
    admission: float = parameter(1.0, 0.3, "", varies=0.1)
    """Wait of a new request over half of the decode steps between two looks at the queue."""


@dataclass(frozen=True)
class WeightFactors:
    """Time of matrix products with weights of one type over that of the kernel that prices them."""

    dense_stream: float = parameter(1.1, 0.2, "")
    """Dense products, where streaming weights takes the time."""
    dense_compute: float = parameter(1.1, 0.2, "")
    """Dense products, where arithmetic takes it."""
    expert_stream: float = parameter(1.0, 0.2, "")
    expert_compute: float = parameter(1.2, 0.3, "")
    """Experts, where arithmetic takes the time: real traffic shares experts less evenly than the
    benchmark, and 4-bit weights are widened on the way."""


PLAIN = WeightFactors(1.0, 1.0, 1.0, 1.0)
"""Factors of 16-bit types, whose dense kernels and experts were measured, and of experts whose own
kernel was."""


PLAIN_TYPES = (None, "bfloat16", "float16")


def typical_factors(weights: str | None) -> WeightFactors:
    """Factors of a type of weights before any point of it."""
    return PLAIN if weights in PLAIN_TYPES else WeightFactors()


def of_era(weights: str, own: str) -> str:
    """Name of a type's factors in an era before the current one: "float8 of 2024"."""
    return weights if weights in PLAIN_TYPES else f"{weights} of {own}"


@dataclass(frozen=True)
class StepWork(OverCases):
    """What an engine runs in a step on one rank; arrays over cases, seconds of kernels alone."""

    dense: Floats
    """Dense matrix products of quantised weights: projections, dense layers, shared experts."""
    experts: Floats
    attention: Floats
    network: Floats
    """All-reduce, exchange and pipeline."""
    other: Floats
    """Router, norms, head."""
    dense_compute: Floats
    """Share of arithmetic in dense products, 0 to 1: see `compute_share`."""
    expert_compute: Floats
    sequences: Floats
    kernels: Floats
    """Kernels that the step launches."""
    elements: Floats
    """Elements of the hidden states of all tokens and layers, over multiprocessors x clock."""

    @property
    def seconds(self) -> Floats:
        """All kernels alone."""
        return self.dense + self.experts + self.attention + self.network + self.other


@dataclass(frozen=True)
class Engine:
    """An engine with the parameters that price it."""

    name: str
    parameters: EngineParameters
    factors: tuple[WeightFactors, WeightFactors]
    """Factors of the dense weights' type, and of the experts'."""
    origin: str
    """What the parameters rest on, in words."""
    overhead: float | None = None
    """Seconds of a step that no kernel explains, as given; None: as fitted."""

    def admission(self, concurrency: Ints) -> Floats:
        """Decode steps that a new request waits for the engine to look at it, on average."""
        few, many = LOOKS.get(self.name, (1.0, 1.0))
        return self.parameters.admission * np.where(concurrency < MANY, few, many) / 2

    @property
    def mixes(self) -> bool:
        """Whether prefills run in the steps of other sequences' decodes."""
        return self.name in MIXING

    def factors_of(self, work: StepWork) -> tuple[Floats | float, Floats | float]:
        """Factors of the times of dense products and of experts; 1 for types that were measured."""
        dense, experts = self.factors
        share, other = work.dense_compute, work.expert_compute
        return (
            1.0
            if dense == PLAIN
            else dense.dense_stream ** (1 - share) * dense.dense_compute**share,
            1.0
            if experts == PLAIN
            else experts.expert_stream ** (1 - other) * experts.expert_compute**other,
        )

    def decode(self, work: StepWork) -> Floats:
        """Seconds of a decode step."""
        dense, experts = self.factors_of(work)
        kernels = dense * work.dense + experts * work.experts
        return kernels + work.attention + work.network + work.other + self.host(work)

    def prefill(self, work: StepWork) -> Floats:
        """Seconds of a step of prefills alone."""
        p, (dense, experts) = self.parameters, self.factors_of(work)
        own = dense * work.dense + experts * work.experts + work.attention + work.other
        kernels = p.prefill * own + work.network + ELEMENTWISE * work.elements / p.elementwise
        if self.overhead is not None:
            return kernels + self.overhead
        launches = p.launch * work.kernels
        return p.step + (kernels**SHARPNESS + launches**SHARPNESS) ** (1 / SHARPNESS)

    def read_once(self, work: StepWork) -> Floats:
        """Seconds of a decode step that it does not take again when a prefill runs in it."""
        if not self.mixes:
            return np.zeros(len(work))
        dense, experts = self.factors_of(work)
        return dense * work.dense + experts * work.experts + work.network + self.host(work)

    def host(self, work: StepWork) -> Floats:
        """Seconds of a decode step that no kernel explains."""
        if self.overhead is not None:
            return np.full(len(work), self.overhead)
        p = self.parameters
        return p.step + p.sequence * work.sequences + p.gap * work.kernels


def compute_share(rows: Floats, ridge: float) -> Floats:
    """Share of arithmetic in a product of so many rows with a weight matrix.

    Args:
        rows: of the activations.
        ridge: rows at which arithmetic takes as long as streaming the weights.
    """
    ratio = (rows / ridge) ** SHARPNESS
    return ratio / (1 + ratio)


def era(name: str, version: str | None) -> str:
    """Era of an engine's release; an unknown or unstated one is of the current era."""
    release = tuple(int(part) for part in re.findall(r"\d+", version or "")[:2])
    if not release:
        return CURRENT
    first = FIRST_OF_2025.get(name)
    return EARLY if first and release < first else CURRENT


@functools.cache
def engine(
    name: str, version: str | None, dense_weights: str, expert_weights: str | None
) -> Engine:
    """The engine of a name and release with weights of some types.

    An engine or era without points takes the mean of the others of its era, else the prior.
    """
    known, own = shipped_engines(), era(name, version)
    fits = [fit for fit in known.engine if fit.era == own]
    factors = [
        known.weights.get(weights or "", typical_factors(weights))
        for weights in (dense_weights, expert_weights)
    ]
    for fit in fits:
        if fit.name == name:
            origin = f"{fit.points} published points of {name} of {own}"
            return Engine(name, fit.parameters, (factors[0], factors[1]), origin)
    origin = f"no published point of {name} of {own}: "
    if not fits:
        parameters = known.prior.get(own, EngineParameters())
        return Engine(name, parameters, (factors[0], factors[1]), origin + "typical values")
    names = ", ".join(fit.name for fit in fits)
    logs = [[np.log(getattr(fit.parameters, key)) for key in FACTS] for fit in fits]
    mean = np.exp(np.mean(logs, axis=0)).tolist()
    parameters = EngineParameters(**dict(zip(FACTS, mean, strict=True)))
    return Engine(name, parameters, (factors[0], factors[1]), origin + f"the mean of {names}")


FACTS = metadata(EngineParameters)


@dataclass(frozen=True)
class EngineFit:
    """Parameters of an engine of one era, and their origin."""

    name: str
    era: str
    parameters: EngineParameters
    points: int
    """Published points that were fitted."""


@dataclass(frozen=True)
class EngineFile:
    """Contents of data/engine.toml."""

    note: str
    source: str
    engine: tuple[EngineFit, ...]
    weights: Mapping[str, WeightFactors]
    """Factors by type of weights, of engines before 2025 apart: "float8 of 2024"."""
    prior: Mapping[str, EngineParameters]
    """Typical parameters of an era without points."""
    bounds: Mapping[str, tuple[float, float]]
    """5 % and 95 % quantile of log(measured / predicted) of points whose model, GPU and engine were
    left out, by quantity."""


@functools.cache
def shipped_engines() -> EngineFile:
    """The fits of data/engine.toml."""
    values: dict[str, Any] = read_toml(FILE)
    return from_mapping(EngineFile, values, "engine.toml")
