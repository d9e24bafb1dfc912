"""A training suite: the model, the batch, and the list of trainings with their budgets."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from moebench.spec.model import ModelSpec
from moebench.spec.schema import check_range, from_mapping, parse_toml
from moebench.suite_files import suite_text
from moebench.units import nearest


@dataclass(frozen=True)
class PlannedTraining:
    """One line of the list: a recipe with its options, its tokens and its seeds."""

    recipe: str
    tokens: int
    seeds: tuple[int, ...] = (1,)
    base: str | None = None
    """Recipe of the run that it starts from; None: random weights."""
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_range(self, "tokens", least=1, most=10**15)


@dataclass(frozen=True)
class TrainingSuite:
    """A training suite as its file has it."""

    title: str
    model: ModelSpec
    run: tuple[PlannedTraining, ...]
    batch: int = 16
    """Windows of a step."""
    window: int = 256
    """Tokens of a window."""
    kind: str = "training"
    schema: int = 1

    def planned(self, recipe: str) -> PlannedTraining:
        """The first training of a recipe; a ValueError names those that there are."""
        for run in self.run:
            if run.recipe == recipe:
                return run
        known = dict.fromkeys(run.recipe for run in self.run)
        raise ValueError(
            f"{self.title}: found no training of recipe {recipe!r}{nearest(recipe, known)}"
        )


def training_suite(name: str) -> TrainingSuite:
    """A training suite by its shipped name or from a TOML file."""
    where, text = suite_text(name)
    tables = parse_toml(text, where)
    if tables.get("kind") != "training":
        raise ValueError(
            f"{where}: kind: found {tables.get('kind', 'routers')!r}, expected 'training'"
        )
    return from_mapping(TrainingSuite, tables, where)


def scaled_up(model: ModelSpec, factor: int) -> ModelSpec:
    """The model with widths and layers `factor` times as large; experts and top-k stay."""
    if factor == 1:
        return model
    heads = {
        name: getattr(model.attention, name) * factor for name in ("num_heads", "num_kv_heads")
    }
    return replace(
        model,
        name=f"{model.name}-x{factor}",
        num_layers=model.num_layers * factor,
        hidden_size=model.hidden_size * factor,
        intermediate_size=model.intermediate_size * factor,
        attention=replace(model.attention, **heads),
    )
