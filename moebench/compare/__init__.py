"""`python -m moebench.compare` says whether a run is slower than another of the same suite."""

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb on a command line; see `moebench.compare.cli`."""
    from moebench.compare import cli

    return cli.main(argv)
