"""`python -m moebench.calibrate` calibrates this machine, or fits the cost model to tables."""

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb on a command line; see `moebench.calibrate.cli`."""
    from moebench.calibrate import cli

    return cli.main(argv)
