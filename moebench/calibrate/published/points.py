"""How the product expresses a published point: its model, types, GPUs and the words for what lacks.

A ValueError says why it cannot. A stand-in is priced, but its point is not covered: another type of
weights than the one that was served.
"""

import functools
import math
import re
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from moebench.calibrate.published.tables import Point
from moebench.predict.kernels.catalogue import mma_generation
from moebench.predict.serving.deployment import (
    ENGINES,
    TRAINED,
    Deployment,
    DeploymentLevel,
)
from moebench.predict.serving.parallelism import Parallelism, parallelism_of
from moebench.predict.serving.trainer import Training
from moebench.spec.case import Phase
from moebench.spec.hardware import HardwareSpec, load_hardware
from moebench.spec.model import ModelSpec, load_model, model_names, shipped_model
from moebench.spec.weight_types import ALIASES, WEIGHT_TYPES
from moebench.units import folded, nearest

SHAPE = re.compile(r"moe-(\d+)-(\d+)-(\d+)-(\d+)")
"""A layer named by hidden size, inner size, experts and top-k."""
LAYER = "-moe-layer"
"""Ending of the name of one layer of a model."""
BITS: tuple[tuple[str, str], ...] = (
    ("mxfp8", "float8"),
    ("fp8", "float8"),
    ("8bit", "int8"),
    ("fp4", "nvfp4"),
    ("4bit", "int4"),
    ("fp16", "float16"),
    ("16", "bfloat16"),
)
"""Types whose names have these letters are priced as the second, a stand-in."""
EIGHT_BITS, WIDENED = ("float8", "mxfp8"), "int8-weight-only"
"""Types that need a rate of the GPU, and one of as many bits that any GPU widens (Marlin)."""

FOUR_BITS = ("nvfp4", "mxfp4")


@dataclass(frozen=True)
class Weights:
    """Type of weights of a point."""

    name: str | None
    """Name of a type; None: the checkpoint's own."""
    stand_in: str = ""
    """Why another type stands in for the stated one; empty: it is the stated one."""


@functools.cache
def weights_of(text: str, is_trained: bool = False) -> Weights:
    """The type of a published name, or one that stands in for it; training is in 8 bits or more."""
    found = _weights_named(text)
    if is_trained and found.name not in (None, *TRAINED):
        name = "mxfp8" if found.name in FOUR_BITS else "bfloat16"
        return Weights(name, f"training in {text} is priced as {name}")
    return found


def _weights_named(text: str) -> Weights:
    name = text.strip().lower()
    if not name or name in ("unstated", "nan"):
        return Weights(None)
    if name in WEIGHT_TYPES or name in ALIASES:
        return Weights(ALIASES.get(name, name))
    for letters, found in BITS:
        if letters in name.replace("-", "").replace(" ", ""):
            return Weights(found, f"{text} weights are priced as {found}")
    known_types = nearest(name, [*WEIGHT_TYPES, *ALIASES])
    raise ValueError(f"column dtype: found {text!r}{known_types}")


def cache_type(text: str, weights: str | None, hardware: HardwareSpec) -> str:
    """Type of the KV cache of a published name, beside weights of a type.

    Unstated: 8 bits beside quantised weights on compute capability 10, else 16, the engines'
    default. NVIDIA's checkpoints for these GPUs name an 8-bit cache, and concurrencies without a
    queue in published points (llama-3.1-70b on one B200: 64 prompts of 8192) fit no other.
    """
    if text.strip().lower() not in ("", "unstated", "nan"):
        return "float8" if "8" in text else "bfloat16"
    is_narrow = weights in ("float8", "nvfp4") and mma_generation(hardware) == "tcgen05"
    return "float8" if is_narrow else "bfloat16"


@functools.cache
def model_of(name: str) -> ModelSpec:
    """The shipped model of a published name, or a layer of the sizes that the name states."""
    if (shape := SHAPE.fullmatch(name)) is not None:
        hidden, inner, experts, top_k = map(int, shape.groups())
        own: dict[str, Any] = {"hidden_size": hidden, "intermediate_size": inner}
        own |= {"num_experts": experts, "top_k": top_k}
        plain = load_model("mixtral-8x7b")
        note = "only the sizes of its layer are known"
        return replace(plain, name=name, moe_level_only=note, **own)
    if (model := shipped_model(name)) is not None:
        return model
    if name.endswith(LAYER):
        start = folded(name.removesuffix(LAYER))
        kin = [each for each in model_names() if folded(each).startswith(start)]
        if len(kin) == 1:
            return load_model(kin[0])
    hint = nearest(name, model_names()).partition("; known")[0]
    raise ValueError(f"column model: {name!r} is not shipped{hint}")


class Setup(NamedTuple):
    """What serves a point: all that its steps have in common."""

    model: str
    hardware: str
    num_gpus: int
    tp: int
    ep: int
    dtype: str
    kv_dtype: str
    engine: str
    pp: int = 1
    copies: int = 1
    is_sharded: bool = False

    @classmethod
    def of(cls, point: Point) -> "Setup":
        """The setup of a point."""
        return cls(*(getattr(point, name) for name in cls._fields))

    def weights(self, phase: str) -> Weights:
        """The type of weights of a step, or what stands in for it on this GPU."""
        found = weights_of(self.dtype, phase == "train")
        if found.name in EIGHT_BITS and "float8" not in load_hardware(self.hardware).peak:
            why = f"{found.name} weights are widened on {self.hardware}, priced as wider ones"
            return Weights("bfloat16" if phase == "train" else WIDENED, why)
        return found


def deployment_of(
    setup: Setup, phase: Phase, context: int, level: DeploymentLevel = "model"
) -> Deployment:
    """The deployment of a step, with `context` tokens of each sequence."""
    try:
        hardware = load_hardware(setup.hardware)
    except ValueError as error:
        raise ValueError(f"column hardware: {error}") from None
    return Deployment(
        model_of(setup.model),
        hardware,
        phase=phase,
        level=level,
        context=context,
        dtype=setup.weights(phase).name,
        kv_dtype=cache_type(setup.kv_dtype, setup.weights(phase).name, hardware),
        engine=setup.engine if setup.engine.partition(":")[0] in ENGINES else None,
        parallel=_parallelism(setup, hardware),
        training=Training(copies=setup.copies, is_sharded=setup.is_sharded),
    )


def _parallelism(setup: Setup, hardware: HardwareSpec) -> Parallelism:
    """How a point's GPUs share the work, on as few nodes as they fit into."""
    gpus = max(setup.num_gpus, setup.tp, setup.ep)
    wire, found = hardware.interconnect, parallelism_of(gpus, setup.tp, setup.ep)
    found = replace(found, pipeline_parallel=setup.pp)
    if wire is None or gpus <= wire.devices:
        return found
    return replace(found, nodes=math.ceil(gpus / wire.devices))
