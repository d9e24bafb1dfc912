"""One step of the first run, in a process of its own that the run can kill.

python -m moebench.doctor.first_run.child kernels --device cuda:0 --folder F --limit 170
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from moebench import terminal
from moebench.doctor.first_run.packages import carry
from moebench.doctor.first_run.step_run import StepRun


def main(arguments: Sequence[str]) -> int:
    """Run the step; its checks are in the folder, and the exit code says how the process ended."""
    parser = argparse.ArgumentParser(prog="python -m moebench.doctor.first_run.child")
    parser.add_argument("step")
    parser.add_argument("--device", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--limit", type=float, required=True)
    parser.add_argument("--carry", type=Path)
    parser.add_argument("--imitate", action="store_true", help="mark all that is kept simulated")
    options = parser.parse_args(arguments)
    if options.carry is not None:
        carry(options.carry)
    run = StepRun(options.device, options.folder, options.limit, options.imitate)
    step = importlib.import_module(f"moebench.doctor.first_run.{options.step}")
    step.check(run)
    return 0


if __name__ == "__main__":
    sys.exit(terminal.run(lambda: main(sys.argv[1:])))
