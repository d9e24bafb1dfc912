"""How a verb speaks beside its answer, and how it ends."""

import os
import sys
from collections.abc import Callable

from moebench.units import printable

CLOSED = 141
"""Exit code of a program whose reader has gone (128 + SIGPIPE), as in `... | head`."""
INTERRUPTED = 130
"""Of one that was stopped by Ctrl-C (128 + SIGINT)."""


def run(main: Callable[[], int]) -> int:
    """Run a verb and return its exit code; a closed stdout or Ctrl-C ends it in one line."""
    try:
        try:
            return main()
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes stdout once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED


def say(line: str) -> None:
    """A line on stderr, which is not the answer."""
    print(printable(line), file=sys.stderr)
