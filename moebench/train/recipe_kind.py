"""What a recipe of `python -m moebench.train` is: its options, its flags, and how it is built."""

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

from moebench import terminal
from moebench.records.training import TrainingManifest
from moebench.spec.model import ModelSpec
from moebench.train.checkpoint_network import Pretrained
from moebench.train.loop import Recipe
from moebench.train.run import Trained


@dataclass(frozen=True)
class Start:
    """What a recipe starts from."""

    manifest: TrainingManifest
    base: Trained | None
    pretrained: Pretrained | None
    """The checkpoint in place of a base."""
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
    router_options: Callable[[Any, ModelSpec], Mapping[str, Any]] = lambda options, model: {}
    needs_base: bool = False
    takes_checkpoint: bool = False
    """Whether a checkpoint of transformers may be its base."""
    ends_early: bool = True
    """Whether a validation loss that rises ends it; not where a twin has the same tokens."""
    trained: Literal["everything", "router"] = "everything"
    """What the optimiser changes."""
    flags: Mapping[str, str] = field(default_factory=dict)
    """Options that have a flag, with their help."""

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Add --checkpoint where the recipe takes one, and a flag for its options that have one."""
        if self.takes_checkpoint:
            parser.add_argument(
                "--checkpoint",
                metavar="PATH",
                help="in place of --base: a folder in the Hugging Face layout, or a hub id",
            )
            terminal.add_device(parser, "where to train on a checkpoint: ")
            terminal.add_device_map(parser)
        hints = get_type_hints(self.options)
        for option in dataclasses.fields(self.options):
            if option.name in self.flags:
                flag, dest = "--" + option.name.replace("_", "-"), f"option_{option.name}"
                meaning = self.flags[option.name]
                if isinstance(option.default, bool):
                    parser.add_argument(flag, dest=dest, action="store_true", help=meaning)
                    continue
                hint = hints[option.name]
                if get_origin(hint) is Literal:
                    words = get_args(hint)
                    meaning += f" (default: {option.default})"
                    parser.add_argument(
                        flag, dest=dest, choices=words, default=option.default, help=meaning
                    )
                    continue
                kind = next(t for t in (*get_args(hint), hint) if t is not type(None))
                default = "none" if option.default in ("", None) else option.default
                parser.add_argument(
                    flag,
                    dest=dest,
                    type=kind,
                    default=option.default,
                    metavar="TEXT" if kind is str else "N",
                    help=f"{meaning} (default: {default})",
                )
