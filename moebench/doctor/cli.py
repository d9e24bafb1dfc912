"""`python -m moebench.doctor`: what on this machine spoils measurements, and how far to trust it.

    python -m moebench.doctor                 what is wrong here, and how to mend it
    python -m moebench.doctor --selftest      measure the harness itself, at most ten minutes
    python -m moebench.doctor --selftest --out results/selftest       and keep the record
    python -m moebench.doctor --aa-runs 10    run an unchanged cell ten times, for `compare`
    python -m moebench.doctor --first-run     check everything on a GPU once, in ten minutes
    python -m moebench.doctor --first-run --imitate     the same on an imitation of a GPU

Exit codes: 0 done, 1 the selftest missed a required rate or a check of the first run failed, 2 bad
input, 4 not written.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from moebench import terminal


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line; see the module's text for exit codes."""
    parser = terminal.parser(
        "doctor", "What on this machine spoils measurements, and how to mend it.", "--selftest"
    )
    add = parser.add_argument
    add("--selftest", action="store_true", help="measure the harness's own error rates here")
    add("--aa-runs", type=int, metavar="N", help="run an unchanged cell N times and keep the runs")
    terminal.add_device(parser)
    add("--time-budget", default="9 min", metavar="TIME", help="of the selftest (default 9 min)")
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help="keep the selftest's record, as results/selftest, or the first run's page and archive",
    )
    first = parser.add_argument_group("first run on a GPU")
    first.add_argument(
        "--first-run",
        action="store_true",
        help="check kernels, calibration, suites and energy in ten minutes; one page of verdicts",
    )
    first.add_argument(
        "--imitate", action="store_true", help="on an imitation of a GPU; all is marked simulated"
    )
    first.add_argument(
        "--carry", type=Path, metavar="DIR", help="also import packages from this folder"
    )
    given = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(given)

    def answer() -> int:
        if options.first_run:
            return _first_run(options, given)
        if options.imitate or options.carry:
            raise ValueError(
                f"{'--imitate' if options.imitate else '--carry'}: only of --first-run"
            )
        # Not above: a first run must say which packages are missing before they are imported.
        from moebench.doctor import answers

        return answers.answer(options, given)

    return terminal.run(answer)


def _first_run(options: argparse.Namespace, given: Sequence[str]) -> int:
    from moebench.doctor.first_run.run import FirstRunPlace, first_run

    for name in ("selftest", "aa_runs", "json"):
        if getattr(options, name):
            raise ValueError(f"--{name.replace('_', '-')}: not beside --first-run")
    if options.device == "cpu":
        raise ValueError("--device cpu: found --first-run, which is for a GPU; or --imitate one")
    out = options.out or Path("results/first-run") / ("imitated" if options.imitate else "gpu")
    place = FirstRunPlace(out, options.device, options.imitate, options.carry)
    return first_run(place, shlex.join(["python", "-m", "moebench.doctor", *given]))
