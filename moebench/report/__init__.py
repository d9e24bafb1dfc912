"""`python -m moebench.report` writes the report of a run again from its records."""

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb on a command line; see `moebench.report.cli`."""
    from moebench.report import cli

    return cli.main(argv)
