"""Suites of expert backends as TOML files: their tables, their checks, and their cells."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

from moebench.experts.catalogue import EXPERT_BACKENDS
from moebench.records.experts_run import ExpertsCell
from moebench.routers.policy import known_policies
from moebench.routers.synthetic.mixes import MIXES, SLOTS
from moebench.spec.case import DType
from moebench.spec.model import ModelSpec, model_names
from moebench.spec.schema import from_mapping
from moebench.suite.source import SuiteSource, suite_source
from moebench.units import Seconds, nearest


@dataclass(frozen=True)
class ShapeEntry:
    """A `[[shape]]` table: a model's experts and the steps to run through them."""

    title: str
    model: str
    tokens: tuple[int, ...]
    full_tokens: tuple[int, ...] = ()
    """Tokens of the steps under `--full`; empty: `tokens`."""
    scale: int = 1
    mixes: tuple[str, ...] = ("fixed",)
    mixes_from: int = 1
    """Least tokens of a step that runs all mixes; smaller steps run the first mix only."""
    train: tuple[int, ...] = ()
    """Tokens of training steps (forward and backward), under the first mix."""


@dataclass(frozen=True)
class ExpertsFile:
    """The tables of the suite's TOML file."""

    schema: Literal[1]
    kind: Literal["experts"]
    title: str
    backends: tuple[str, ...]
    shape: tuple[ShapeEntry, ...]
    time_budget: Annotated[Seconds, "time"]
    """Wall time of the default grid; `--full` has no limit."""
    dtypes: tuple[DType, ...] = ("bfloat16",)
    full_dtypes: tuple[DType, ...] = ("bfloat16",)
    routers: tuple[str, ...] = ()
    """Routers that are timed alone in every forward cell."""
    rounds: int = 9
    seed: int = 0


@dataclass(frozen=True)
class ExpertsSuite:
    """A suite of expert backends that has been checked."""

    source: SuiteSource
    file: ExpertsFile
    models: Mapping[str, ModelSpec]
    """Models by the name that the file gives them."""


def load_experts_suite(name: str | SuiteSource) -> ExpertsSuite:
    """Read the suite, and check its backends, routers, mixes and models."""
    source = suite_source(name) if isinstance(name, str) else name
    path = source.where
    file = from_mapping(ExpertsFile, source.tables(), path)
    for what, names, known in (
        ("backends", file.backends, EXPERT_BACKENDS),
        ("routers", file.routers, known_policies()),
        ("mixes", [mix for shape in file.shape for mix in shape.mixes], MIXES),
    ):
        for name in names:
            if name not in known:
                raise ValueError(f"{path}: {what}: unknown {name!r}{nearest(name, known)}")
    if file.rounds < 1:
        raise ValueError(f"{path}: rounds: found {file.rounds}, expected at least 1")
    models = {}
    for shape in file.shape:
        models[shape.model] = model = source.model(shape.model)
        if model.num_experts < SLOTS and {*shape.mixes} != {"fixed"}:
            raise ValueError(
                f"{path}: {shape.title}: mixes: found {', '.join(shape.mixes)}, expected 'fixed' "
                f"alone: {model.name} has {model.num_experts} experts, the others need {SLOTS}"
            )
    return ExpertsSuite(source, file, models)


def planned_cells(suite: ExpertsSuite, is_full: bool) -> tuple[ExpertsCell, ...]:
    """All cells, shape by shape, since the weights of a shape are built once for each type."""
    cells: list[ExpertsCell] = []
    file, shipped = suite.file, model_names()
    for dtype in file.full_dtypes if is_full else file.dtypes:
        for shape in file.shape:
            tokens = (is_full and shape.full_tokens) or shape.tokens
            own = None if shape.model in shipped else suite.models[shape.model]
            make = partial(ExpertsCell, shape.title, shape.model, shape.scale, description=own)
            for n in tokens:
                mixes = shape.mixes if n >= shape.mixes_from else shape.mixes[:1]
                cells.append(make("forward", dtype, n, mixes))
            cells += [make("train", dtype, n, shape.mixes[:1]) for n in shape.train]
    return tuple(cells)
