"""`python -m moebench.trace` records which experts the tokens of a text run in a checkpoint."""

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb on a command line; see `moebench.trace.cli`."""
    from moebench.trace import cli

    return cli.main(argv)
