"""The command line of `python -m moebench.report`: rebuild a run's report, print its table."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from moebench import terminal
from moebench.records.manifest import read_manifest, run_kind
from moebench.records.run import load_run
from moebench.report.backends import report_experts
from moebench.report.output import run_summary, terminal_report, write_report
from moebench.report.pareto.output import report_pareto
from moebench.report.traced.output import report_trace


def main(arguments: Sequence[str] | None = None) -> int:
    """Rebuild a run's report; the exit code is 0 or, for bad input, 2."""
    parser = terminal.parser(
        "report",
        "Rebuild report.md, report.html and the figures of a run from its records.",
        "results/mixtral/epyc/20261122T130501Z-cb3f0b3",
    )
    parser.add_argument(
        "run",
        type=Path,
        metavar="RUN_DIR",
        help="directory with manifest.json, or the file of a trace",
    )
    options = parser.parse_args(arguments)
    return terminal.run(lambda: _report(options))


def _report(options: argparse.Namespace) -> int:
    if options.run.suffix == ".safetensors":
        return report_trace(options.run, options.json)
    manifest = read_manifest(options.run)
    if manifest.get("kind") == "pareto":
        return report_pareto(options.run, options.json)
    if run_kind(manifest) == "experts":
        return report_experts(options.run, options.json)
    run = load_run(options.run)
    terminal.write_beside(lambda: write_report(run))
    if options.json:
        terminal.show_json(run_summary(run))
    else:
        terminal.show(terminal_report(run))
    return 0
