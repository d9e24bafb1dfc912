"""`python -m moebench.train` trains a small language model and the routers of the papers on it."""

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb on a command line; see `moebench.train.cli`."""
    from moebench.train import cli

    return cli.main(argv)
