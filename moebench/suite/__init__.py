"""`python -m moebench.suite` measures a suite here, each number beside its prediction."""

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb on a command line; see `moebench.suite.cli`."""
    from moebench.suite import cli

    return cli.main(argv)
