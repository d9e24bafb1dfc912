"""The command line of `python -m moebench.report`: rebuild a run's report, print its table."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from moebench.records.run import compares_backends, load_run
from moebench.report.sections import run_summary, terminal_report, write_report
from moebench.units import printable


def main(arguments: Sequence[str] | None = None) -> int:
    """Rebuild a run's report; 0 done, 2 bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m moebench.report",
        description="Rebuild report.md, report.html and the figures of a run from its records.",
        epilog="example: python -m moebench.report results/mixtral/epyc/20261122T130501Z-cb3f0b3",
    )
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="directory with manifest.json")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead")
    options = parser.parse_args(arguments)
    try:
        if compares_backends(options.run):
            # Imports torch, which reports of other runs never need.
            from moebench.suite.execution.verb import report_execution

            report_execution(options.run, options.json)
            return 0
        run = load_run(options.run)
        write_report(run)
        if options.json:
            print(json.dumps(run_summary(run), indent=1, ensure_ascii=False))
        else:
            print(terminal_report(run))
    except ValueError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2
    return 0
