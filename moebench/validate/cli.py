"""`python -m moebench.validate TABLE`: score the GPU model against measured tables.

    python -m moebench.validate latencies.csv.gz --calibration rows:40 --json
    python -m moebench.validate attention.csv.gz --leave-out device --plot figures/
    python -m moebench.validate published.csv --rows predictions.csv

A table is told by its columns (see `kinds`). Everything is in percent; `--rows` writes predictions
in the units of the table. Kernels are priced warm, because the tables are measured without flushing
L2; end-to-end points are priced cold.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from moebench import terminal
from moebench.calibrate.cells import read_cells
from moebench.validate.kinds import kind_of
from moebench.validate.own_run import validate_run


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and score; 0 done, 1 a check failed, 2 bad input, 3 rows left out."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.run is None and options.table is None:
        parser.error("which table? (or --run DIR)")
    return terminal.run(lambda: _validate(options))


def _validate(options: argparse.Namespace) -> int:
    if options.run is not None:
        return validate_run(options.run, options.earlier, options.json)
    kind = kind_of(read_cells(options.table))
    for name in kind.unused(options):
        terminal.say(f"--{name}: not used for a table of {kind.title}")
    scored = kind.score(options)
    if options.rows is not None:
        scored.lines.write(options.rows)
        if scored.refusal:
            terminal.say(scored.refusal)
            return 0
    elif scored.refusal:
        raise ValueError(scored.refusal)
    if options.json:
        terminal.show_json(scored.document)
    else:
        terminal.show(scored.text)
    return 0 if options.rows is not None else scored.code


def _parser() -> argparse.ArgumentParser:
    parser = terminal.parser(
        "validate",
        "Score the GPU model against measured latencies.",
        "latencies.csv.gz --calibration rows:40",
    )
    parser.add_argument(
        "table", type=Path, nargs="?",
        help="measured layer latencies, top-k pairs, dense matmuls, attention, MLA, collectives, "
        "exchange of tokens, serving energy, or published points; told by its columns",
    )  # fmt: skip
    parser.add_argument(
        "--run", type=Path, metavar="DIR", help="score the predictions of a suite run instead"
    )
    parser.add_argument(
        "--earlier", type=Path, metavar="DIR", help="with --run: an earlier run of the same suite"
    )
    parser.add_argument(
        "--calibration", default="shipped", metavar="shipped|rows:N|none",
        help="shipped parameters; fitted on N rows of each kernel and device, scored on the "
        "others; or the spec sheet alone (default: shipped)",
    )  # fmt: skip
    parser.add_argument(
        "--leave-out", choices=("device", "shapes", "both", "backbone", "source", "group"),
        help="fit the table itself without each device in turn, without a quarter of its model "
        "shapes at a time, or without both, and score what was left out; with rows:N, N rows of "
        "the device (and of other shapes) are known all the same; shipped parameters stay out. "
        "Of a table of energy: each backbone; of published points: each source, or each group of "
        "model and GPU",
    )  # fmt: skip
    parser.add_argument(
        "--fits", type=Path, metavar="TABLE",
        help="fit kernels to these latencies in place of the shipped parameters; with backbones "
        "left out, more energy to fit (dense models); with sources or groups, more points",
    )  # fmt: skip
    parser.add_argument(
        "--gemm", type=Path, help="dense matmuls of devices that were never calibrated"
    )
    parser.add_argument(
        "--models", type=Path, help="with a table of power and energy: facts of its backbones"
    )
    parser.add_argument(
        "--given", choices=("throughput", "none"), default="none",
        help="with such a table: whether predictions are given the measured throughput",
    )  # fmt: skip
    parser.add_argument(
        "--rows", type=Path, metavar="FILE",
        help="also write measured, predicted and the 90 %% interval of every line of the table as "
        "CSV, in its units (of pairs: the ratio of their times), with the reason where a line has "
        "no price; exit code 0 then whatever is unpriced",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the rows drawn (default: 0)")
    parser.add_argument(
        "--plot", type=Path, metavar="FOLDER", help="draw a figure of each device into this folder"
    )
    return parser
