"""The command line of `python -m moebench.train RECIPE`: train a language model, or a router on it.

`python -m moebench.train export` writes a trained base as a checkpoint, and `prose` fetches text.

A training that was cut off is taken up again by the same command.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from moebench import terminal


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run it; exit code 0 done, 2 bad input, 130 interrupted."""
    given = list(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(given)
    return terminal.run(lambda: _run(options, given))


def _parser() -> argparse.ArgumentParser:
    from moebench.train.recipes import RECIPES

    parser = terminal.parser(
        "train",
        "Train a small language model, or an adaptive router on a trained one.",
        "base --suite tiny --tokens 100000",
    )
    recipes = parser.add_subparsers(dest="recipe", metavar="RECIPE", required=True)
    for name, recipe in RECIPES.items():
        own = recipes.add_parser(name, help=recipe.meaning, description=recipe.meaning)
        own.add_argument("--suite", default="tiny", help="a training suite or a TOML file")
        own.add_argument("--seed", type=int, default=1)
        own.add_argument("--tokens", type=int, metavar="N", help="instead of the suite's budget")
        own.add_argument("--text", type=Path, metavar="PATH", help="a text file or a folder")
        own.add_argument(
            "--base", type=Path, metavar="RUN", help="the finished training to start from"
        )
        own.add_argument(
            "--scale", type=int, default=1, metavar="N", help="widths and layers N times as large"
        )
        own.add_argument("--out", type=Path, default=Path("results/train"), metavar="DIR")
        recipe.add_options(own)
    meaning = "Write a finished base as a checkpoint in the Hugging Face layout."
    export = recipes.add_parser("export", help=meaning, description=meaning)
    export.add_argument("--base", type=Path, required=True, metavar="RUN", help="the training")
    export.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="a new folder")
    meaning = "Fetch English prose to train on, and text of another domain, from Debian's packages."
    prose = recipes.add_parser("prose", help=meaning, description=meaning)
    prose.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="a new folder")
    return parser


def _prose(options: argparse.Namespace) -> int:
    from moebench.spec.schema import encode
    from moebench.train.prose import fetch_prose

    found = fetch_prose(options.out)
    if options.json:
        terminal.show_json(encode(found))
    else:
        titles = ("part", "package", "version", "files", "size")
        rows = [
            (f.part, f.package, f.version, f"{f.files:,}", f"{f.bytes / 1e6:.1f} MB") for f in found
        ]
        terminal.show(terminal.text_table(titles, rows, {0, 1, 2}))
    return 0


def _export(options: argparse.Namespace) -> int:
    from moebench.train.export import export_base
    from moebench.train.run import load_trained

    number = export_base(load_trained(options.base), options.out)
    if options.json:
        terminal.show_json({"folder": str(options.out), "parameters": number})
    else:
        terminal.show(f"{options.out}: {number:,} parameters; a token is a byte")
    return 0


def _run(options: argparse.Namespace, argv: list[str]) -> int:
    if options.recipe == "export":
        return _export(options)
    if options.recipe == "prose":
        return _prose(options)
    from moebench.train.recipes import asked_training, run_training

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C
    for name in ("seed", "tokens", "scale"):
        found, least = getattr(options, name), 0 if name == "seed" else 1
        if found is not None and found < least:
            raise ValueError(f"--{name}: found {found}, expected at least {least}")
    run = run_training(asked_training(options), argv)
    m = run.manifest
    last = run.last_validation_loss
    found = "not measured" if last is None else f"{last:.4f} nats a token"
    if options.json:
        from moebench.spec.schema import encode

        terminal.show_json({"folder": str(run.folder), "validation_loss": last, **encode(m)})
    else:
        rate = m.tokens_done / m.seconds if m.seconds else 0.0
        terminal.show(
            f"{run.folder}: {m.status}, {m.tokens_done:,} tokens in {m.seconds:.0f} s "
            f"({rate / 1e3:.1f} k tokens/s), validation loss {found}"
            + (f"; {m.message}" if m.message else "")
        )
    return 0
