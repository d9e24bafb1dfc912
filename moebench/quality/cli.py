"""The command line of `python -m moebench.quality`: what a router changes in a checkpoint."""

import argparse
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moebench import terminal

SEQUENCE, TOKENS = 256, 65536


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run it; exit code 0 done, 2 bad input."""
    options = _parser().parse_args(argv)
    return terminal.run(lambda: _run(options))


def _parser() -> argparse.ArgumentParser:
    parser = terminal.parser(
        "quality",
        "Measure the loss of a checkpoint on a text, and what a router changes in it.",
        "--checkpoint ./mixtral --text book.txt --router skip --mean-k 1.5",
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="PATH",
        help="folder in the Hugging Face layout, or a hub id",
    )
    parser.add_argument("--text", type=Path, metavar="FILE", help="UTF-8 text")
    parser.add_argument(
        "--router",
        metavar="NAME|FILE",
        help="a router of moebench to apply, or a file of a trained one; default: none",
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the router, as in a suite file",
    )
    parser.add_argument(
        "--mean-k",
        type=float,
        metavar="K",
        help="set the thresholds of the router in every layer, on windows that are not evaluated",
    )
    parser.add_argument(
        "--tokens", type=int, default=TOKENS, metavar="N", help=f"of the text at most; {TOKENS}"
    )
    parser.add_argument(
        "--sequence", type=int, default=SEQUENCE, metavar="N", help=f"of a window; {SEQUENCE}"
    )
    parser.add_argument("--tasks", metavar="NAME,...", help="tasks of lm_eval, which you install")
    parser.add_argument(
        "--task-folder", type=Path, metavar="FOLDER", help="of tasks of your own, YAML of lm_eval"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="samples of each task at most")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="of lm_eval; 1")
    terminal.add_device(parser)
    terminal.add_device_map(parser)
    return parser


def _run(options: argparse.Namespace) -> int:
    from moebench.measure.devices import choose_device
    from moebench.quality.answer import table
    from moebench.quality.checkpoint import AskedRouter, AskedText, checkpoint_quality
    from moebench.quality.tasks import TaskRequest
    from moebench.spec.schema import encode

    for name in ("tokens", "sequence", "limit", "batch", "mean_k"):
        if (found := getattr(options, name)) is not None and not found >= 1:
            raise ValueError(f"--{name.replace('_', '-')}: found {found}, expected at least 1")
    if options.text is None and options.tasks is None:
        raise ValueError("--text or --tasks: expected one of them, or both")
    if options.router is None and (options.option or options.mean_k is not None):
        raise ValueError("--option, --mean-k: only with --router")
    if options.mean_k is not None and options.text is None:
        raise ValueError("--mean-k: expected --text, on which it is set")
    router = None
    if options.router is not None:
        router = AskedRouter(options.router, router_options(options.option), options.mean_k)
    text = tasks = None
    if options.text is not None:
        text = AskedText(options.text, options.sequence, options.tokens)
    if options.tasks is not None:
        names = tuple(name.strip() for name in options.tasks.split(","))
        if options.task_folder is not None and not options.task_folder.is_dir():
            raise ValueError(f"--task-folder: {options.task_folder}: no such folder")
        tasks = TaskRequest(names, options.limit, options.batch, options.task_folder)
    place = options.device_map or choose_device(options.device)
    found = checkpoint_quality(options.checkpoint, router, text, tasks, place)
    if options.json:
        terminal.show_json(encode(found))
    else:
        terminal.show(table(found))
    return 0


def router_options(given: Sequence[str]) -> Mapping[str, Any]:
    """Options of a router as name=value, the value as in TOML; else it is a word."""
    found = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals or not name or not value:
            raise ValueError(f"--option: found {each!r}, expected NAME=VALUE")
        if name == "mean_k":
            raise ValueError("--option: found mean_k, which --mean-k sets on the text")
        try:
            found[name] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found[name] = value
    return found
