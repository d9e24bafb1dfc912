"""The command line of `python -m moebench.compare`: parse, compare two runs, print."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from moebench import terminal
from moebench.compare.noise import load_unchanged_runs
from moebench.compare.runs import THRESHOLD, compare_runs
from moebench.compare.text import comparison_text
from moebench.records.run import load_run
from moebench.spec.schema import encode


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare two runs; 0 done, 1 a case became slower by more than the threshold, 2 bad input."""
    parser = terminal.parser(
        "compare",
        "Is run B slower than run A? Latencies are divided by the reference operation of the same "
        "rounds; the machine's noise between runs enters the interval.",
        "results/smoke/epyc/A results/smoke/epyc/B",
    )
    parser.add_argument("run_a", type=Path, metavar="RUN_A", help="directory with manifest.json")
    parser.add_argument("run_b", type=Path, metavar="RUN_B", help="the run that may be slower")
    parser.add_argument(
        "--threshold",
        type=float,
        default=THRESHOLD,
        metavar="SHARE",
        help="a slower case is a regression from this share on (default %(default)s)",
    )
    parser.add_argument(
        "--force", action="store_true", help="compare different machines or suites, labelled"
    )
    options = parser.parse_args(arguments)
    return terminal.run(lambda: _compare(options))


def _compare(options: argparse.Namespace) -> int:
    if not 0 < options.threshold < 1:
        raise ValueError(f"--threshold: found {options.threshold}, expected between 0 and 1")
    run_a, run_b = load_run(options.run_a), load_run(options.run_b)
    unchanged = load_unchanged_runs(str(run_b.manifest.environment.get("fingerprint", "")))
    found = compare_runs(run_a, run_b, unchanged, options.threshold, options.force)
    if options.json:
        terminal.show_json({"schema": 1, **encode(found)})
    else:
        terminal.show(comparison_text(found))
    return 1 if found.regressions else 0
