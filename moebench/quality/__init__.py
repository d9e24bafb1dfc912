"""`python -m moebench.quality` measures what a router changes in what a checkpoint predicts."""

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb on a command line; see `moebench.quality.cli`."""
    from moebench.quality import cli

    return cli.main(argv)
