"""What a router costs and how it loads experts: the computed half of each router.

A policy is a frozen dataclass: its fields are the router's options, which makes it the schema of
a suite's `[[router]]` table as well. The module of the same name in `moebench.routers.routing`
executes it; a contract test holds the two together. Adding a router is adding one file to each.
"""

import functools
import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from moebench.spec.case import OperatingPoint
from moebench.spec.load import ExpertLoad
from moebench.spec.model import ModelSpec
from moebench.spec.ops import Op, router_parameters
from moebench.spec.schema import from_mapping
from moebench.units import nearest

_POLICIES: dict[str, type["Policy"]] = {}


@dataclass(frozen=True)
class PublishedMean:
    """Mean routed experts per token that a paper reports for a model."""

    mean_k: float
    source: str


@dataclass(frozen=True)
class Policy(ABC):
    """The options, parameters, work and load of one kind of router."""

    name: ClassVar[str]
    """As the paper spells it, in kebab-case."""
    is_adaptive: ClassVar[bool] = False
    """Whether tokens differ in how many experts they run."""
    is_causal: ClassVar[bool] = True
    """Whether a token's route is independent of later tokens."""
    builder: ClassVar[str] = ""
    """Of a router that lies elsewhere: "package.module:function" of what builds its modules."""
    published: ClassVar[Mapping[str, PublishedMean]] = {}
    """Published mean k by model name."""

    @abstractmethod
    def parameters(self, model: ModelSpec) -> int:
        """Router parameters in all MoE layers together, what layers share counted once."""

    def extra_parameters(self, model: ModelSpec) -> int:
        """What the router adds to the base model's own; negative if it replaces it by less."""
        return self.parameters(model) - router_parameters(model)

    @abstractmethod
    def ops(self, model: ModelSpec, num_tokens: int, dtype: str) -> tuple[Op, ...]:
        """The router's work in one layer: matrix products exactly, the rest as launches."""

    @abstractmethod
    def k_distribution(self, model: ModelSpec) -> tuple[tuple[float, ...], str]:
        """Probabilities of 0, 1, 2, ... routed experts per token, and where they come from.

        Raises:
            ValueError: no mean is given and no paper has one for this model.
        """

    def operating_point(self, model: ModelSpec, skew: float = 0.0) -> OperatingPoint:
        """How this router routes in a comparison: its k distribution and the shared marginals."""
        distribution, source = self.k_distribution(model)
        return OperatingPoint(distribution, "imposed", source, skew)

    def load(self, model: ModelSpec, num_tokens: int, point: OperatingPoint) -> ExpertLoad:
        """Expected load of one step of independent tokens."""
        return ExpertLoad.expected(num_tokens, model.num_experts, point.k_distribution, point.skew)

    def mean_or_published(self, mean_k: float | None, model: ModelSpec) -> tuple[float, str]:
        """The mean that was asked for, or the one the paper reports for this model.

        Raises:
            ValueError: neither exists.
        """
        if mean_k is not None:
            return mean_k, "mean k as given"
        if model.published_name in self.published:
            published = self.published[model.published_name]
            return published.mean_k, published.source
        known = ", ".join(sorted(self.published)) or "no model"
        raise ValueError(
            f"{self.name}: no published mean k for {model.name!r} (published for: {known}); "
            "give mean_k"
        )


def register(cls: type[Policy]) -> type[Policy]:
    """Class decorator: make a policy known under its name."""
    _POLICIES[cls.name] = cls
    return cls


def policy(
    name: str,
    options: Mapping[str, Any] | None = None,
    where: str = "",
    *,
    may_import: bool = False,
) -> Policy:
    """The policy of a router with its options.

    Args:
        name: of a router here, or "package.module:Policy" for one that lies elsewhere.
        options: of the router; the policy's fields are their schema.
        where: file and table for error messages.
        may_import: whether a router that lies elsewhere is imported, which runs its code; only
            for a name that the user wrote.

    Raises:
        ValueError: unknown router or option (with the nearest known one), or an ill-typed value.
    """
    prefix = f"{where}: " if where else ""
    if may_import and ":" in name:
        return from_mapping(_imported(name, prefix), options or {}, where or name)
    if name not in known_policies():
        raise ValueError(f"{prefix}unknown router {name!r}{nearest(name, known_policies())}")
    return from_mapping(known_policies()[name], options or {}, where or name)


def _imported(path: str, prefix: str) -> type[Policy]:
    """A policy from outside moebench; importing it runs code."""
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
    folder = Path(__file__).parent
    for router in pkgutil.iter_modules([str(folder)]):
        if router.ispkg:
            importlib.import_module(f"moebench.routers.{router.name}.{part}")
