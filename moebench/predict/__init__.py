"""`python -m moebench.predict` says what a router would bring on a GPU that is not here."""

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb on a command line; see `moebench.predict.cli`."""
    from moebench.predict import cli

    return cli.main(argv)
