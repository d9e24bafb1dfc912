"""Options and answers of the programs that measure the energy reader."""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def arguments_of(program: str, arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"PYTHONPATH=tests python -m {program}")
    if program == "nvml.bench_overhead":
        parser.add_argument("pairs", type=int, nargs="?", metavar="PAIRS")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep it: results/instruments")
    return parser.parse_args(arguments)


def say(options: argparse.Namespace, document: Mapping[str, Any], table: str, suffix: str) -> None:
    """Print the table, or the document; keep both if asked to."""
    from moebench.doctor.record import keep  # the environment of the peers has no torch

    print(json.dumps(document, indent=1) if options.json else table, end="\n" * options.json)
    if options.out is not None:
        print(f"record: {keep(options.out, document, table, suffix)}", file=sys.stderr)
