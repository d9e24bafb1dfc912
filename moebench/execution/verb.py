"""What `python -m moebench.suite` does with a suite of expert backends."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict

from moebench.execution.plan import load_execution_suite
from moebench.execution.report import terminal_report, write_report
from moebench.execution.run import load_results, measure
from moebench.plan import suite_path
from moebench.units import quantity

FOREIGN = ("dry_run", "eager", "layers", "only", "predict", "recalibrate", "write_hardware")
"""Options of suites that compare routers."""


def run_execution(
    options: argparse.Namespace, argv: Sequence[str], parser: argparse.ArgumentParser
) -> int:
    """Measure the suite, or what is left of a run, write its report and print the table.

    Raises:
        ValueError: an option that does not apply, or a backend that does not run here.
    """
    resumed, as_json, budget = options.resume, options.json, options.time_budget
    if resumed is not None:
        argv = json.loads((resumed / "manifest.json").read_text())["argv"]
        options = parser.parse_args(argv)
    for name in FOREIGN:
        if getattr(options, name):
            raise ValueError(f"--{name.replace('_', '-')}: not for a suite of expert backends")
    budget = budget or options.time_budget
    directory = measure(
        load_execution_suite(suite_path(options.suite)),
        argv,
        options.device,
        options.out,
        resumed,
        options.full,
        options.experts,
        quantity(budget, "time") if budget else None,
    )
    write_report(directory)
    if as_json:
        cells = [asdict(result) for result in load_results(directory)]
        print(json.dumps({"directory": str(directory), "cells": cells}))
    else:
        print(terminal_report(directory))
    return 0
