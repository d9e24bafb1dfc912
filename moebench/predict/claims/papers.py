"""Papers and their claims, as read from `moebench/data/claims/*.toml`; each number has its table.

Numbers are stored as printed: a verdict must not depend on digits that were not printed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from moebench.routers.policy import known_policies
from moebench.spec.hardware import load_hardware
from moebench.spec.model import model_names
from moebench.spec.schema import check_range, from_mapping, read_toml
from moebench.units import Flops, nearest
from moebench.version import PACKAGE

Quantity = Literal[
    "speedup",
    "expert-speedup",
    "flops-saved",
    "training-time",
    "training-memory",
    "router-training",
]


@dataclass(frozen=True)
class Rounded:
    """Printed number, and the range of values that round to it."""

    value: float
    half_unit: float
    """Half a unit of the last printed digit."""

    @property
    def low(self) -> float:
        return self.value - self.half_unit

    @property
    def high(self) -> float:
        return self.value + self.half_unit


def rounded(printed: str, key: str = "printed") -> Rounded:
    """Read "1.28", "1.40" or "32.6 %" (a share of 1); anything else is an error in `key`."""
    digits, percent, rest = printed.strip().partition("%")
    digits = digits.strip()
    whole, _, decimals = digits.partition(".")
    if rest or not whole.isdecimal() or (decimals and not decimals.isdecimal()):
        raise ValueError(
            f"{key}: found {printed!r}, expected a number as printed, such as '1.28', '3 %'"
        )
    scale = 0.01 if percent else 1.0
    half_unit = 0.5 * 10.0 ** -len(decimals) if decimals or percent else 0.0
    return Rounded(scale * float(digits), scale * half_unit)


@dataclass(frozen=True)
class Layers:
    """Sizes of a trained model's layers, where a paper does not describe the whole model."""

    source: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_experts: int
    top_k: int
    is_gated: bool = True


@dataclass(frozen=True)
class RouterTraining:
    """How a router is trained on a frozen model."""

    source: str
    devices: int
    """GPUs."""
    samples: int
    longest: int
    """Most tokens of a sample."""
    batch: int
    """Samples."""
    epochs: int
    """Updates of PPO on each batch."""

    def __post_init__(self) -> None:
        check_range(self, "devices", "samples", "longest", "batch", "epochs", least=1)


@dataclass(frozen=True)
class Claim:
    """One claim: a published number, or the fact that none was published."""

    quantity: Quantity
    source: str
    """Table of the number, and what it compares."""
    router: str
    """Policy that prices the claim; a router without a policy is never priced."""
    printed: str = ""
    """Number as printed: a ratio to the baseline, the share saved, or hours of training a router;
    "" if none is claimed."""
    model: str | None = None
    """Name of a shipped model."""
    k: str | None = None
    """Mean routed experts a token as printed; default: the router's own. An integer is exact."""
    k_shares: tuple[float, ...] = ()
    """Shares of tokens with 0, 1, 2, ... experts, if the method states them."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further options of the policy."""
    full_flops: Annotated[Flops, "flops"] | None = None
    """FLOPs printed for the model's own top-k over the paper's sample."""
    layers: Layers | None = None
    """Layers of a model that is not shipped."""
    flops_ratio: float | None = None
    """Time over the baseline's, or speedup, by the paper's arithmetic, without a model to count."""
    flops_source: str = ""
    training: RouterTraining | None = None
    """Recipe of a router's training."""
    missing: tuple[str, ...] = ()
    """What a test of this claim would need, beyond what the paper leaves unstated."""
    note: str = ""

    def __post_init__(self) -> None:
        _ = self.value, self.mean_k  # raise if they are no numbers
        if self.quantity == "flops-saved" and not (self.printed.endswith("%") and self.model):
            raise ValueError("quantity: flops-saved needs a model and printed = a percentage")
        if self.quantity == "router-training" and not (
            self.training and self.model and self.printed
        ):
            raise ValueError("quantity: router-training needs a model, hours and a training table")
        if self.k_shares and abs(sum(self.k_shares) - 1) > 1e-6:
            raise ValueError(f"k_shares: found {self.k_shares}, expected shares that sum to 1")
        if self.model is not None:
            for what, known in (("model", model_names()), ("router", tuple(known_policies()))):
                if (name := getattr(self, what)) not in known:
                    raise ValueError(f"unknown {what} {name!r}{nearest(name, known)}")
        elif not self.missing:
            raise ValueError("missing: found nothing, expected what a claim without a model lacks")
        if self.flops_ratio is not None and not self.flops_source:
            raise ValueError("flops_source: missing, expected where flops_ratio comes from")

    @property
    def value(self) -> Rounded | None:
        """Published number; None if the paper claims none."""
        return rounded(self.printed) if self.printed else None

    @property
    def is_control(self) -> bool:
        """Whether this is a smaller fixed k, measured as a control for the paper's router."""
        return self.router == "top-k" and not self.k_shares

    @property
    def mean_k(self) -> Rounded | None:
        return None if self.k is None else rounded(self.k, "k")


@dataclass(frozen=True)
class Paper:
    """Claims of a paper, their conditions, and the conditions that the paper leaves unstated."""

    name: str
    citation: str
    source: str
    unstated: tuple[str, ...]
    claim: tuple[Claim, ...]
    hardware: str | None = None
    hardware_source: str = ""
    sample_tokens: int | None = None
    """Tokens of the sample for which the paper counts FLOPs."""
    sample_source: str = ""

    def __post_init__(self) -> None:
        if not self.claim:
            raise ValueError("claim: found none, expected at least one")
        if self.hardware is not None:
            load_hardware(self.hardware)
            if not self.hardware_source:
                raise ValueError("hardware_source: missing, expected where the paper says so")
        if self.sample_tokens is not None and not self.sample_source:
            raise ValueError("sample_source: missing, expected where the paper says so")
        if any(one.training for one in self.claim) and None in (self.hardware, self.sample_tokens):
            raise ValueError("training: expected hardware and sample_tokens beside it")


def load_papers() -> tuple[Paper, ...]:
    """All shipped papers; those with priced claims come first."""
    papers = [read_paper(path) for path in sorted((PACKAGE / "data" / "claims").glob("*.toml"))]
    return tuple(sorted(papers, key=lambda paper: not any(claim.model for claim in paper.claim)))


def read_paper(path: Path) -> Paper:
    """Paper of one file; an error names the key and what was expected."""
    return from_mapping(Paper, read_toml(path), f"{path.parent.name}/{path.name}")
