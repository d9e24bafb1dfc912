"""`python -m moebench.validate` scores the cost model against measured tables and runs."""

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb on a command line; see `moebench.validate.cli`."""
    from moebench.validate import cli

    return cli.main(argv)
