"""Measurements of the energy instrument, on a simulated NVML library; needs a checkout and gcc.

    python tests/bench_instruments.py accuracy    errors on known loads, one minute
    python tests/bench_instruments.py overhead    cost to the work beside it, 3 minutes
    python tests/bench_instruments.py peers       zeus and codecarbon, installed by pip

`--out results/instruments` keeps the record and its table in Markdown.
"""

import argparse
import importlib
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from moebench.doctor.record import circumstances, make_record, write_record

INSTRUMENTS = ("accuracy", "overhead", "peers")


def main(arguments: Sequence[str]) -> None:
    """Run one module `nvml.bench_*`: its `measure` gives the record, its `table` the Markdown."""
    parser = argparse.ArgumentParser(
        description="Measure the energy instrument on a simulated NVML library.",
        epilog="example: python tests/bench_instruments.py overhead",
    )
    parser.add_argument("what", choices=INSTRUMENTS)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep it: results/instruments")
    options = parser.parse_args(arguments)
    command = shlex.join(["python", "tests/bench_instruments.py", *arguments])
    where = circumstances(command, torch.device("cpu"))
    bench = importlib.import_module(f"nvml.bench_{options.what}")
    results = bench.measure()
    record, table = make_record(results, where), bench.table(results)
    print(json.dumps(record, indent=1) if options.json else table)
    if options.out is not None:
        path = write_record(options.out, record, table, f"-{options.what}")
        print(f"record: {path}", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
