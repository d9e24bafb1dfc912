"""What `python -m moebench.suite` does with a suite of expert backends."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from moebench import terminal
from moebench.spec.schema import encode
from moebench.suite.execution.plan import load_execution_suite
from moebench.suite.execution.report import terminal_report, write_report
from moebench.suite.execution.results import load_results
from moebench.suite.execution.run import measure
from moebench.suite.plan import suite_path
from moebench.units import quantity

FOREIGN = ("dry_run", "eager", "layers", "only", "predict", "recalibrate", "write_hardware")
"""Options of suites that compare routers."""


def run_execution(options: argparse.Namespace, argv: Sequence[str]) -> int:
    """Measure the suite, or what is left of a run, write its report and print the table.

    Raises:
        ValueError: an option that does not apply, or a backend that does not run here.
    """
    for name in FOREIGN:
        if getattr(options, name):
            raise ValueError(f"--{name.replace('_', '-')}: not for a suite of expert backends")
    try:
        seconds = quantity(options.time_budget, "time") if options.time_budget else None
    except ValueError as error:
        raise ValueError(f"--time-budget: {error}") from error
    directory = measure(
        load_execution_suite(suite_path(options.suite)),
        argv,
        options.device,
        options.out,
        options.resume,
        options.full,
        options.experts,
        seconds,
    )
    report_execution(directory, options.json)
    return 0


def report_execution(directory: Path, as_json: bool) -> None:
    """Write the report of a run of expert backends from its cells, and print it.

    Raises:
        ValueError: the run cannot be read, or has no cell yet.
    """
    kept = load_results(directory)
    for problem in kept.problems:
        terminal.say(f"note: {problem}")
    write_report(kept)
    if as_json:
        cells = [encode(result) for result in kept.cells]
        terminal.show_json({"directory": str(directory), "cells": cells})
    else:
        terminal.show(terminal_report(kept))
