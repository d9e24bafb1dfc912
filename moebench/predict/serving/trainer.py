"""A trainer: how a step is trained, and the parameters of what trainers do besides kernels.

Fitted to published tokens a second of training and to published times of trainers' expert kernels,
data/training.toml.
"""

import functools
from dataclasses import dataclass
from typing import Literal

from moebench.predict.parameters import metadata, parameter
from moebench.spec.schema import MOST_SIZE, from_mapping, read_toml
from moebench.units import nearest
from moebench.version import PACKAGE

FILE = PACKAGE / "data" / "training.toml"
Recompute = Literal["none", "selective", "full"]
RECOMPUTES: tuple[Recompute, ...] = ("none", "selective", "full")
TrainerKernels = Literal["grouped-mm", "group-gemm"]
"""PyTorch's grouped_mm with elementwise kernels of their own, or VeOmni's group gemm in Triton."""
TRAINERS = ("veomni", "megatron", "nemo", "torchtitan", "grouped_mm", "grouped mm", "fsdp")
"""Words, in lower case, that say that a framework's experts are a trainer's."""
GLOBAL_TOKENS = 4e6
"""Tokens between two steps of the optimizer, where they are not stated.

**Source**: Llama 3 (2407.21783), section 3.4.1: batches of 4M tokens at first; others take 2M
to 60M."""


@dataclass(frozen=True)
class TrainerParameters:
    """Trainers, all alike; SI units."""

    kernels: float = parameter(1.1, 0.15, "")
    """Time of kernels in training over their time alone: the clock under full power, casts, norms
    and biases that are not fused."""
    passes: float = parameter(13.5, 0.1, "")
    """Passes over the hidden states of all copies of tokens in which PyTorch's grouped_mm sorts,
    activates, weights and adds up, in place of an engine's elementwise kernels.

    **Source**: VeOmni, pull request 460: 10.2 and 11.4 ms on an H100, 13.6 and 13.3 passes."""
    fused: float = parameter(0.6, 0.4, "")
    """Share of these passes that are left in a whole trainer, which fuses some of them."""
    block: float = parameter(1e-7, 0.3, "s")
    """Time of one multiprocessor for a thread block without work."""
    launch: float = parameter(20e-6, 0.4, "s")
    """Start of a kernel by the host, through Python and autograd."""
    exchange: float = parameter(0.9, 0.25, "")
    """Time of the exchange over that of DeepEP's kernels, less what other kernels hide."""
    hidden: float = parameter(0.6, 0.3, "", ceiling=1.0)
    """Share of a batch's time in which gradients and weights travel beside kernels."""


def trainer_kernels(framework: str) -> TrainerKernels | None:
    """The experts' kernels of a framework in words; None: an engine's."""
    words = framework.lower()
    if not any(name in words for name in TRAINERS):
        return None
    return "group-gemm" if "group gemm" in words or "veomni triton" in words else "grouped-mm"


FACTS = metadata(TrainerParameters)


@dataclass(frozen=True)
class Training:
    """How batches are trained; a step is one batch with its share of the optimizer's step."""

    micro_batches: int | None = None
    """Batches between two steps of the optimizer; None: as many as `GLOBAL_TOKENS` hold."""
    recompute: Recompute = "none"
    """What the backward pass computes again: nothing, all but matrix products and communication, or
    the whole forward pass."""
    copies: int = 1
    """Times that all these GPUs are there, each with batches of its own."""
    is_sharded: bool = False
    """Whether weights are spread over all data-parallel GPUs and gathered for each pass (FSDP)."""
    parameters: TrainerParameters | None = None
    """Parameters of the trainer; None: the fitted ones."""

    def __post_init__(self) -> None:
        for name, found in (("micro-batches", self.micro_batches), ("copies", self.copies)):
            if found is not None and not 1 <= found <= MOST_SIZE:
                raise ValueError(f"{name}: found {found}, expected 1 to {MOST_SIZE}")
        if self.recompute not in RECOMPUTES:
            hint = nearest(self.recompute, RECOMPUTES)
            raise ValueError(f"recompute: found {self.recompute!r}{hint}")

    @property
    def trainer(self) -> TrainerParameters:
        """The parameters in use."""
        return self.parameters or shipped_trainer().parameters


@dataclass(frozen=True)
class TrainerFile:
    """Contents of data/training.toml."""

    note: str
    source: str
    points: int
    """Published points that were fitted."""
    parameters: TrainerParameters
    bounds: tuple[float, float]
    """5 % and 95 % quantile of log(measured / predicted) of steps that were left out."""


@functools.cache
def shipped_trainer() -> TrainerFile:
    """The fit of data/training.toml."""
    return from_mapping(TrainerFile, read_toml(FILE), "training.toml")
