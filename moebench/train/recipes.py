"""The recipes of `python -m moebench.train`, by name, and how one of them is run."""

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from moebench.measure.environment import describe_machine
from moebench.records.manifest import now
from moebench.records.training import TrainingManifest
from moebench.spec.model import ModelSpec
from moebench.spec.schema import encode
from moebench.train.base import BaseOptions, BaseRecipe, build_network, load_network
from moebench.train.loop import Budget, Recipe, train
from moebench.train.plan import scaled_up, training_suite
from moebench.train.run import Trained, TrainingRun, load_trained
from moebench.train.text import Text, load_text


@dataclass(frozen=True)
class Asked:
    """A training that was asked for."""

    recipe: str
    suite: str
    seed: int
    tokens: int
    out: Path
    options: Any
    """Options of the recipe, as its dataclass."""
    base: Path | None = None
    text: Path | None = None
    scale: int = 1


@dataclass(frozen=True)
class Start:
    """What a recipe starts from."""

    manifest: TrainingManifest
    base: Trained | None
    num_steps: int
    options: Any


@dataclass(frozen=True)
class RecipeKind:
    """One recipe: what it means, its options, and how it is built."""

    meaning: str
    options: type
    build: Callable[[Start], Recipe]
    router: str = "top-k"
    """Router of the checkpoint that it makes."""
    router_options: Callable[[Any], Mapping[str, Any]] = lambda options: {}
    needs_base: bool = False
    flags: Mapping[str, str] = field(default_factory=dict)
    """Options that have a flag, with their help."""

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Add a flag for each option of the recipe that has one."""
        for option in dataclasses.fields(self.options):
            if option.name in self.flags:
                flag = "--" + option.name.replace("_", "-")
                kind = type(option.default) if option.default is not None else str
                parser.add_argument(
                    flag,
                    dest=f"option_{option.name}",
                    type=kind,
                    default=option.default,
                    help=f"{self.flags[option.name]} (default: {option.default})",
                )


def _base(start: Start) -> Recipe:
    m = start.manifest
    if start.base is not None:
        network = load_network(start.base)
    else:
        network = build_network(m.model, m.router, m.router_options, m.seed)
    return BaseRecipe(network, start.options, start.num_steps)


RECIPES: dict[str, RecipeKind] = {
    "base": RecipeKind(
        "Train a small MoE language model with its own top-k; with --base, train one further.",
        BaseOptions,
        _base,
        flags={"learning_rate": "peak of the schedule"},
    ),
}


def asked_training(options: argparse.Namespace) -> Asked:
    """The training that a command line asks for."""
    kind = RECIPES[options.recipe]
    given = {
        name.removeprefix("option_"): value
        for name, value in vars(options).items()
        if name.startswith("option_")
    }
    tokens = options.tokens
    if tokens is None:
        tokens = training_suite(options.suite).planned(options.recipe).tokens
    return Asked(
        options.recipe,
        options.suite,
        options.seed,
        tokens,
        options.out,
        kind.options(**given),
        options.base,
        options.text,
        options.scale,
    )


def run_name(asked: Asked, kind: RecipeKind) -> str:
    """Folder name: suite, recipe, options that are not the default, tokens and seed."""
    default = kind.options()
    differs = [
        f"{option.name.replace('_', '-')}={getattr(asked.options, option.name):g}"
        if isinstance(getattr(asked.options, option.name), int | float)
        else f"{option.name.replace('_', '-')}={getattr(asked.options, option.name)}"
        for option in dataclasses.fields(asked.options)
        if getattr(asked.options, option.name) != getattr(default, option.name)
    ]
    further = ["further"] if asked.base is not None and not kind.needs_base else []
    size = [f"x{asked.scale}"] if asked.scale > 1 else []
    parts = [Path(asked.suite).stem, asked.recipe, *further, *size, *differs]
    return "-".join([*parts, f"{asked.tokens}", f"s{asked.seed}"])


def run_training(asked: Asked, argv: list[str], text: Text | None = None) -> TrainingRun:
    """Run a training to its end, or take it up; the folder of the finished run."""
    kind = RECIPES[asked.recipe]
    suite = training_suite(asked.suite)
    if kind.needs_base and asked.base is None:
        raise ValueError(f"{asked.recipe}: expected --base RUN, the trained model it starts from")
    base = load_trained(asked.base) if asked.base is not None else None
    model = base.manifest.model if base is not None else scaled_up(suite.model, asked.scale)
    text = text or load_text(asked.text)
    check_base(base, text, model)
    num_steps = max(1, asked.tokens // (suite.batch * suite.window))
    manifest = TrainingManifest(
        run=run_name(asked, kind),
        recipe=asked.recipe,
        options=encode(asked.options),
        router=kind.router,
        router_options=dict(kind.router_options(asked.options)),
        model=model,
        seed=asked.seed,
        tokens=asked.tokens,
        batch=suite.batch,
        window=suite.window,
        text=text.name,
        text_sha256=text.sha256,
        base=base.folder.name if base is not None else None,
        base_sha256=base.sha256 if base is not None else None,
        base_tokens=base.manifest.tokens_done if base is not None else 0,
        environment=encode(describe_machine(torch.device("cpu"))),
        argv=tuple(argv),
        started_at=now(),
    )
    with TrainingRun(asked.out / manifest.run, manifest) as run:
        recipe = kind.build(Start(run.manifest, base, num_steps, asked.options))
        train(recipe, run, text, Budget(num_steps))
    return run


def check_base(base: Trained | None, text: Text, model: ModelSpec) -> None:
    """Refuse a base that was trained on another text: its test part may have been trained on."""
    if base is not None and base.manifest.text_sha256 != text.sha256:
        raise ValueError(
            f"{base.folder}: text: found {base.manifest.text} ({base.manifest.text_sha256[:12]}), "
            f"expected the text of this training, {text.name} ({text.sha256[:12]}): files of "
            "validation and test could have been trained on"
        )
