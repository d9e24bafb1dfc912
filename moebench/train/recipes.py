"""The recipes of `python -m moebench.train`, by name, and how one of them is run."""

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moebench.measure.devices import choose_device
from moebench.measure.environment import describe_machine
from moebench.model.huggingface.dispatch import input_device
from moebench.records.manifest import now
from moebench.records.training import TrainingManifest
from moebench.routers.ada_k.train import AdaKTraining
from moebench.spec.model import ModelSpec
from moebench.spec.schema import encode
from moebench.train.ada_k import ADA_K_FLAGS, AdaKRecipe
from moebench.train.adamoe import (
    ADAMOE_FLAGS,
    AdaMoEOptions,
    AdaMoERecipe,
    FineTuningOptions,
    with_null_experts,
)
from moebench.train.allocated_network import ada_k_on
from moebench.train.base import (
    BaseOptions,
    BaseRecipe,
    TrainedNetwork,
    build_network,
    load_network,
)
from moebench.train.checkpoint_network import (
    AllocatedCheckpoint,
    checkpoint_name,
    load_pretrained,
)
from moebench.train.checkpoint_result import write_result
from moebench.train.loop import Budget, Recipe, train
from moebench.train.plan import scaled_up, training_suite
from moebench.train.recipe_kind import RecipeKind, Start
from moebench.train.regression_k import RegressionKOptions, RegressionKRecipe
from moebench.train.rmoe import RMOE_FLAGS, RMoEOptions, twin_options
from moebench.train.run import Trained, TrainingRun, load_trained
from moebench.train.text import Text, load_text
from moebench.train.tuned_checkpoint import TunedCheckpoint

OF_CHECKPOINT = ("checkpoint", "device", "device_map")
"""Options that only recipes on a checkpoint have."""


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
    checkpoint: str | None = None
    """Folder or hub id, in place of a base."""
    device: str = "auto"
    """What a checkpoint is trained on; everything else is trained on the CPU."""
    device_map: str | None = None
    """How accelerate spreads the checkpoint, in place of a device."""


def _base(start: Start) -> Recipe:
    m = start.manifest
    if start.base is not None:
        network = load_network(start.base)
    else:
        network = build_network(m.model, m.router, m.router_options, m.seed)
    return BaseRecipe(network, start.options, start.num_steps)


def _from_scratch(start: Start) -> Recipe:
    if start.base is not None:
        raise ValueError(
            f"{start.manifest.recipe}: found --base, expected none: it is trained from scratch"
        )
    return _base(start)


def _adamoe(start: Start) -> Recipe:
    network: TrainedNetwork
    if start.pretrained is not None:
        options = start.options.router_options()
        network = TunedCheckpoint(start.pretrained.model, start.manifest.router, options)
    else:
        assert start.base is not None
        network = with_null_experts(start.base, start.options)
    return AdaMoERecipe(network, start.options, start.num_steps)


def _ada_k(start: Start) -> Recipe:
    warm_steps = start.options.warm_steps
    if start.num_steps <= warm_steps:
        per_step = start.manifest.batch * start.manifest.window
        raise ValueError(
            f"tokens: found {start.manifest.tokens}, expected more than {warm_steps * per_step}, "
            f"which the warm start's {warm_steps} steps take"
        )
    if start.pretrained is not None:
        model = AllocatedCheckpoint(start.pretrained.model, start.options.router_options)
        return AdaKRecipe(model, start.options, start.manifest.seed)
    assert start.base is not None
    return ada_k_on(load_network(start.base), start.options, start.manifest.seed)


def _regression_k(start: Start) -> Recipe:
    assert start.base is not None
    return RegressionKRecipe(load_network(start.base), start.options)


_RATE = {"learning_rate": "peak of the schedule"}
RECIPES: dict[str, RecipeKind] = {
    "base": RecipeKind(
        "Train a small MoE language model with its own top-k; with --base, train one further.",
        BaseOptions,
        _base,
        flags=_RATE,
    ),
    "adamoe": RecipeKind(
        "Add AdaMoE's null experts to a trained model, and train all of it further.",
        AdaMoEOptions,
        _adamoe,
        "adamoe",
        lambda options, model: options.router_options(),
        needs_base=True,
        takes_checkpoint=True,
        ends_early=False,
        flags=_RATE | ADAMOE_FLAGS,
    ),
    "adamoe-twin": RecipeKind(
        "Train a trained model further as adamoe does, without null experts.",
        FineTuningOptions,
        _base,
        needs_base=True,
        ends_early=False,
        flags=_RATE,
    ),
    "regression-k": RecipeKind(
        "Measure what one expert fewer costs on a trained model, and fit a router to it.",
        RegressionKOptions,
        _regression_k,
        "regression-k",
        lambda options, model: {"least_cost": options.least_cost},
        needs_base=True,
        ends_early=False,
        flags={"least_cost": "predicted rise in nats from which on an expert runs"},
    ),
    "rmoe": RecipeKind(
        "Train a small MoE language model with RMoE's recurrent router.",
        RMoEOptions,
        _from_scratch,
        "rmoe",
        lambda options, model: options.router_options(),
        ends_early=False,
        flags=_RATE | RMOE_FLAGS,
    ),
    "rmoe-twin": RecipeKind(
        "Train the model that rmoe is compared with: top-k under RMoE's balance loss.",
        BaseOptions,
        _from_scratch,
        router_options=lambda options, model: twin_options(model),
        ends_early=False,
        flags=_RATE,
    ),
    "ada-k": RecipeKind(
        "Train Ada-K's allocators on a base by PPO; everything else stays frozen.",
        AdaKTraining,
        _ada_k,
        takes_checkpoint=True,
        router="ada-k",
        router_options=lambda options, model: options.router_options,
        needs_base=True,
        ends_early=False,
        trained="router",
        flags=ADA_K_FLAGS,
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
        **{n: getattr(options, n) for n in OF_CHECKPOINT if hasattr(options, n)},
    )


def run_name(asked: Asked, kind: RecipeKind) -> str:
    """Folder name: suite, recipe, checkpoint, changed options, tokens and seed."""
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
    of = [checkpoint_name(asked.checkpoint)] if asked.checkpoint is not None else []
    parts = [Path(asked.suite).stem, asked.recipe, *of, *further, *size, *differs]
    return "-".join([*parts, f"{asked.tokens}", f"s{asked.seed}"])


def run_training(asked: Asked, argv: list[str], text: Text | None = None) -> TrainingRun:
    """Run a training to its end, or take it up; the folder of the finished run."""
    kind = RECIPES[asked.recipe]
    suite = training_suite(asked.suite)
    _check_start(asked, kind)
    base = load_trained(asked.base) if asked.base is not None else None
    device, pretrained = torch.device("cpu"), None
    if asked.checkpoint is not None:
        place = asked.device_map or choose_device(asked.device)
        pretrained = load_pretrained(asked.checkpoint, place)
        device = input_device(pretrained.model)
    if pretrained is not None:
        model = pretrained.spec
    else:
        model = base.manifest.model if base is not None else scaled_up(suite.model, asked.scale)
    text = text or load_text(asked.text, pretrained.tokenise if pretrained is not None else None)
    check_base(base, text, model)
    num_steps = max(1, asked.tokens // (suite.batch * suite.window))
    manifest = TrainingManifest(
        run=run_name(asked, kind),
        recipe=asked.recipe,
        options=encode(asked.options),
        router=kind.router,
        router_options=dict(kind.router_options(asked.options, model)),
        model=model,
        seed=asked.seed,
        tokens=asked.tokens,
        batch=suite.batch,
        window=suite.window,
        text=text.name,
        text_sha256=text.sha256,
        base=base.folder.name if base is not None else None,
        checkpoint=pretrained.name if pretrained is not None else None,
        base_sha256=getattr(base or pretrained, "sha256", None),
        base_tokens=base.manifest.tokens_done if base is not None else 0,
        trained=kind.trained,
        environment=encode(describe_machine(device)),
        argv=tuple(argv),
        started_at=now(),
    )
    budget = Budget(num_steps, ends_early=kind.ends_early)
    # Before its folder is made, so that what cannot be leaves none behind.
    text.batch(asked.seed, 0, (suite.batch, suite.window))
    text.windows("validation", budget.validation_windows, suite.window)
    recipe = kind.build(Start(manifest, base, pretrained, num_steps, asked.options))
    with TrainingRun(asked.out / manifest.run, manifest) as run:
        train(recipe, run, text, budget)
        if pretrained is not None:
            write_result(run, recipe, pretrained)
    return run


def _check_start(asked: Asked, kind: RecipeKind) -> None:
    """Refuse a training without what it starts from, or with two of them."""
    if asked.checkpoint is not None:
        others = {"--base": asked.base is not None, "--scale": asked.scale > 1}
        for flag in (flag for flag, is_given in others.items() if is_given):
            raise ValueError(f"{asked.recipe}: found {flag} beside --checkpoint, expected one")
        if not kind.takes_checkpoint:
            raise ValueError(f"{asked.recipe}: found --checkpoint, expected --base RUN")
    elif kind.needs_base and asked.base is None:
        choice = " or --checkpoint PATH" if kind.takes_checkpoint else ""
        raise ValueError(
            f"{asked.recipe}: expected --base RUN{choice}, the trained model it starts from"
        )


def check_base(base: Trained | None, text: Text, model: ModelSpec) -> None:
    """Refuse a base that was trained on another text: its test part may have been trained on."""
    if base is not None and base.manifest.text_sha256 != text.sha256:
        raise ValueError(
            f"{base.folder}: text: found {base.manifest.text} ({base.manifest.text_sha256[:12]}), "
            f"expected the text of this training, {text.name} ({text.sha256[:12]}): files of "
            "validation and test could have been trained on"
        )
