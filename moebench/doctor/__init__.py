"""`python -m moebench.doctor` says what spoils measurements and measures the harness itself."""

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb on a command line; see `moebench.doctor.cli`."""
    from moebench.doctor import cli

    return cli.main(argv)
