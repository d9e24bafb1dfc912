"""The command line of `python -m moebench.suite NAME`: measure a suite beside its predictions.

A run that is cut off - Ctrl-C, SIGTERM, kill -9, a full disk - is taken up again with `--resume`.

Exit codes: 0 done, 2 bad input, 3 some cases failed, 4 not written (a full disk), 130 interrupted.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from moebench import terminal
from moebench.records.manifest import recorded_arguments
from moebench.suite.routers_run import run_routers_suite, write_hardware
from moebench.suite.source import kept_source, suite_source
from moebench.suite_files import suite_names


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run it; the module's text has the exit codes."""
    given = list(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(given)
    return terminal.run(lambda: _dispatch(options, given))


def _parser() -> argparse.ArgumentParser:
    parser = terminal.parser(
        "suite",
        "Measure a suite of adaptive routers on this machine, each number beside its prediction.",
        "mixtral --only ada-k --time-budget '3 min'",
    )
    parser.add_argument("suite", nargs="?", help="a shipped suite (--list) or a TOML file")
    parser.add_argument("--list", action="store_true", help="list the shipped suites")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the cases with predicted time and memory"
    )
    parser.add_argument("--predict", metavar="HARDWARE", help="only predict, for this hardware")
    terminal.add_device(parser)
    parser.add_argument(
        "--checkpoint",
        metavar="PATH",
        help="run layers of this model: a folder in the Hugging Face layout, or a hub id",
    )
    parser.add_argument(
        "--layers",
        metavar="N",
        help="layers run in each step; of a checkpoint their numbers, e.g. 0,15,31",
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="ROUTER", help="this router and the baseline"
    )
    parser.add_argument(
        "--experts",
        metavar="NAME[,NAME]",
        type=lambda names: tuple(dict.fromkeys(names.split(","))),
        default=(),
        help="expert backends instead of the suite's",
    )
    parser.add_argument(
        "--eager",
        action="store_true",
        help="no CUDA graphs: decode on a GPU is one where its expert backend can be captured",
    )
    parser.add_argument(
        "--full", action="store_true", help="suite experts: the whole grid, without a time budget"
    )
    parser.add_argument(
        "--time-budget", metavar="TIME", help="wall time of the whole run, e.g. '8 min'"
    )
    parser.add_argument(
        "--energy",
        choices=("quick", "full", "off"),
        default="quick",
        help="quick: about 9 s a case where there is a counter; full: about 40 s",
    )
    parser.add_argument(
        "--operating-point",
        metavar="learned:NAME|trace:FILE",
        help="what a router did, for routers of its kind: a name, TOML file or trace",
    )
    parser.add_argument("--strict", action="store_true", help="refuse a point of other sizes")
    pareto = parser.add_argument_group("suite pareto")
    pareto.add_argument(
        "--training", type=Path, default=Path("results/train"), help="folder of its trainings"
    )
    pareto.add_argument(
        "--no-training", action="store_true", help="only what is trained already is evaluated"
    )
    pareto.add_argument("--text", type=Path, metavar="PATH", help="a text file or a folder")
    pareto.add_argument(
        "--shifted", type=Path, metavar="PATH", help="a text of another domain, evaluated too"
    )
    parser.add_argument("--out", type=Path, default=Path("results"), help="where runs are kept")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="take up a run's directory")
    calibration = parser.add_mutually_exclusive_group()
    calibration.add_argument("--recalibrate", action="store_true", help="measure the machine again")
    calibration.add_argument(
        "--keep-calibration",
        action="store_true",
        help="use the saved calibration, labelled, even if the machine's speed has changed",
    )
    parser.add_argument(
        "--write-hardware", metavar="NAME", help="print this machine as a hardware file"
    )
    return parser


def _dispatch(options: argparse.Namespace, argv: list[str]) -> int:
    if options.list:
        titles = {name: str(suite_source(name).tables()["title"]) for name in suite_names()}
        if options.json:
            terminal.show_json(titles)
        else:
            width = max(map(len, titles))
            terminal.show("\n".join(f"{name:{width}}  {title}" for name, title in titles.items()))
        return 0
    if not options.checkpoint and options.layers is not None:
        if not options.layers.isdecimal() or int(options.layers) < 1:
            raise ValueError(f"--layers: found {options.layers}, expected a number of at least 1")
        options.layers = int(options.layers)
    if options.resume and not options.write_hardware:
        options, argv = _resumed(options)
    if options.time_budget is not None:
        options.time_budget = terminal.seconds("--time-budget", options.time_budget)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C
    if options.write_hardware:
        return write_hardware(options)
    if options.suite is None:
        raise ValueError(f"which suite? known: {', '.join(suite_names())}, or a TOML file")
    if options.resume:
        source, note = kept_source(options.resume, options.suite)
        if note:
            terminal.say(f"note: {note}")
    else:
        source = suite_source(options.suite)
    if source.kind == "training":
        raise ValueError(
            f"{source.where}: a list of trainings: python -m moebench.train base --suite "
            f"{options.suite}"
        )
    if options.checkpoint and source.kind != "routers":
        raise ValueError(f"--checkpoint: only for a suite of routers, not for {options.suite}")
    if source.kind == "pareto":
        from moebench.suite.pareto.run import run_pareto_suite

        return run_pareto_suite(options, source, argv)
    if source.kind == "experts":
        if options.operating_point or options.strict:
            raise ValueError("--operating-point: only for a suite of routers, which route")
        from moebench.suite.experts_run import run_experts_suite

        return run_experts_suite(options, source, argv)
    return run_routers_suite(options, source, argv)


def _resumed(options: argparse.Namespace) -> tuple[argparse.Namespace, list[str]]:
    """Options and command line of the run to resume, with this call's budget and format."""
    argv = recorded_arguments(options.resume)
    resumed = _parser().parse_args(argv)
    resumed.resume, resumed.json = options.resume, options.json or resumed.json
    resumed.time_budget = options.time_budget or resumed.time_budget
    return resumed, argv
