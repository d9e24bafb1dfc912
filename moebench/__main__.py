"""`python -m moebench VERB ...` does the same as `python -m moebench.VERB ...`."""

import importlib
import sys

from moebench import terminal
from moebench.units import nearest
from moebench.version import VERSION

VERBS = {
    "suite": "measure a suite here, each number beside its prediction",
    "train": "train a small language model, and the routers of the papers on it",
    "trace": "record which experts the tokens of a text run in a checkpoint",
    "quality": "what a router changes in the loss of a checkpoint",
    "predict": "what a router would bring on a GPU that is not here",
    "validate": "score the cost model against a table of measured latencies",
    "calibrate": "calibrate this machine, or fit the cost model to measured latencies",
    "compare": "whether a run is slower than another of the same suite",
    "doctor": "what spoils measurements here; --selftest measures the harness itself",
    "report": "write the report of a run again from its records",
}
USAGE = "\n".join(
    (
        "usage: python -m moebench VERB [options]",
        "",
        *(f"  {verb:<10} {meaning}" for verb, meaning in VERBS.items()),
        "",
        "example: python -m moebench suite smoke",
        "Each verb has its own --help.",
        f"{terminal.EXIT_CODES} (a full disk)",
    )
)


def main(argv: list[str] | None = None) -> int:
    """Run a verb; the exit code is the verb's, 0 for help and version, 2 for an unknown verb."""
    return terminal.run(lambda: _run_verb(sys.argv[1:] if argv is None else argv))


def _run_verb(arguments: list[str]) -> int:
    if arguments and arguments[0] in VERBS:
        verb = importlib.import_module(f"moebench.{arguments[0]}")
        return int(verb.main(arguments[1:]))
    if arguments == ["--version"]:
        terminal.show(f"moebench {VERSION}")
        return 0
    if arguments and arguments[0] in ("--help", "-h"):
        terminal.show(USAGE)
        return 0
    problem = f"unknown verb {arguments[0]!r}{nearest(arguments[0], VERBS)}" if arguments else ""
    for line in [f"moebench: {problem}"] if problem else USAGE.split("\n"):
        terminal.say(line)
    return terminal.BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
