"""Policy: what a router costs and how it loads experts, the computed half of each router.

A policy is a frozen dataclass. Its fields are the router's options, and so the schema of a suite's
`[[router]]` table. `module.py` in the same folder executes it; a contract test holds the two
together. Adding a router is adding a folder with these two files.
"""

import functools
import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from moebench.spec.case import OperatingPoint
from moebench.spec.load import ExpertLoad
from moebench.spec.model import ModelSpec
from moebench.spec.ops import Op, fused
from moebench.spec.schema import from_mapping
from moebench.units import nearest, same_name

_POLICIES: dict[str, type["Policy"]] = {}
Reduction = Literal["sum", "mean", "pooled"]
"""How an auxiliary loss is reduced over a stack's layers, each time in one released code:

sum: each layer's own loss, added up (AdaMoE's LoRA experiments, `exp_1`)
mean: that sum divided by the number of layers (megablocks, which trained OLMoE)
pooled: one loss over the tokens of all layers together, so that imbalances of two layers can cancel
(transformers, the released RMoE, and AdaMoE's Mixtral experiments, `exp_2`)
"""


SORTING = frozenset({"flatten"})
"""Ops of a router that our GPU kernel does in one launch where torch chooses."""
CHOOSING = SORTING | {
    *("choice", "count", "drop-nulls"),
    *("cost", "entropy", "hash", "mass", "ratios"),
}
"""Ops that it does in one launch where it chooses too (`moebench.routers.gpu`)."""
ONE_GRID_TOKENS = 1024
"""Most tokens of which it is one launch; beyond, a second one scatters."""


@dataclass(frozen=True)
class PublishedMean:
    """Mean routed experts per token that a paper reports for a model."""

    mean_k: float
    source: str


@dataclass(frozen=True)
class Policy(ABC):
    """The options, parameters, work and load of one kind of router."""

    name: ClassVar[str]
    """The router's name as its paper spells it, in kebab-case."""
    is_adaptive: ClassVar[bool] = False
    """Whether tokens differ in how many experts they run."""
    is_causal: ClassVar[bool] = True
    """Whether a token's route is independent of later tokens."""
    builder: ClassVar[str] = ""
    """Builder of the modules of a router outside moebench, as "package.module:function"."""
    published: ClassVar[Mapping[str, PublishedMean]] = {}
    """Published mean k by model name."""

    @property
    def replaces_base(self) -> bool:
        """Whether its form has no place for the weights of a pretrained router."""
        return False

    def identity_options(self, model: ModelSpec) -> Mapping[str, Any]:
        """Options under which it starts as a pretrained model's own router, beside the defaults."""
        return {}

    @abstractmethod
    def parameters(self, model: ModelSpec) -> int:
        """Router parameters of all MoE layers; parameters that layers share count once."""

    @abstractmethod
    def ops(self, model: ModelSpec, num_tokens: int, dtype: str) -> tuple[Op, ...]:
        """The router's work in one layer: matrix products exactly, all else as launches."""

    @property
    def in_kernel(self) -> frozenset[str]:
        """Names of its ops that our GPU kernel does."""
        return SORTING

    def fused_ops(self, model: ModelSpec, num_tokens: int, dtype: str) -> tuple[Op, ...]:
        """The router's work in one layer where our GPU kernel routes."""
        launches = 1 if num_tokens <= ONE_GRID_TOKENS else 2
        return fused("route", self.ops(model, num_tokens, dtype), self.in_kernel, launches)

    @abstractmethod
    def k_distribution(self, model: ModelSpec) -> tuple[tuple[float, ...], str]:
        """Probabilities of 0, 1, 2, ... routed experts per token, and their source."""

    def operating_point(self, model: ModelSpec, skew: float = 0.0) -> OperatingPoint:
        """How this router routes in a comparison: its k distribution and the shared marginals."""
        distribution, source = self.k_distribution(model)
        return OperatingPoint(distribution, "imposed", source, skew)

    def load(self, model: ModelSpec, num_tokens: int, point: OperatingPoint) -> ExpertLoad:
        """Expected load of one step of independent tokens."""
        of_experts = point.skew, point.expert_shares
        return ExpertLoad.expected(num_tokens, model.num_experts, point.k_distribution, *of_experts)

    def mean_or_published(self, mean_k: float | None, model: ModelSpec) -> tuple[float, str]:
        """The given mean, or the paper's for this model; an error where neither exists."""
        if mean_k is not None:
            return mean_k, "mean k as given"
        if published := self.published.get(model.published_name):
            return published.mean_k, published.source
        known = ", ".join(sorted(self.published)) or "no model"
        raise ValueError(
            f"{self.name}: no published mean k for {model.name!r} (published for: {known}); "
            "give mean_k"
        )


def register(cls: type[Policy]) -> type[Policy]:
    """Class decorator that registers a policy under its name."""
    _POLICIES[cls.name] = cls
    return cls


def policy(
    name: str,
    options: Mapping[str, Any] | None = None,
    where: str = "",
    *,
    may_import: bool = False,
) -> Policy:
    """The policy of a router with its options, for which the policy's fields are the schema.

    `name` may be "package.module:Policy" outside moebench; `may_import` allows to import it, which
    runs its code: only for a name that the user wrote. `where` is file and table for messages.
    """
    prefix = f"{where}: " if where else ""
    if may_import and ":" in name:
        return from_mapping(_imported(name, prefix), options or {}, where or name)
    if (name := same_name(name, known_policies())) not in known_policies():
        hint = nearest(name, known_policies())
        if ":" in name:
            hint = "; code outside moebench runs where a suite file of yours names it"
        raise ValueError(f"{prefix}unknown router {name!r}{hint}")
    return from_mapping(known_policies()[name], options or {}, where or name)


def _imported(path: str, prefix: str) -> type[Policy]:
    """A policy outside moebench; importing it runs code."""
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever that code raises
        raise ValueError(
            f"{prefix}router {path!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Policy) and found.builder):
        raise ValueError(f"{prefix}router {path!r}: expected a Policy that names its `builder`")
    return found


def known_policies() -> dict[str, type[Policy]]:
    """Every policy by its router's name; the first call imports them."""
    import_routers("policy")
    return _POLICIES


@functools.cache
def import_routers(part: Literal["policy", "module"]) -> None:
    """Import one file of every router's folder, which registers what it defines."""
    for file in sorted(Path(__file__).parent.glob(f"*/{part}.py")):
        importlib.import_module(f"moebench.routers.{file.parent.name}.{part}")
