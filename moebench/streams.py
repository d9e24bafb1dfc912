"""Where answers and notes go, whatever stands at the other end of stdout and stderr.

An answer is never lost: what an encoding lacks has a stand-in, and what stdout does not take goes
to stderr. Notes and progress are no answer: trouble with them stops no verb.
"""

import codecs
import contextlib
import errno
import os
import re
import sys
from typing import Any

STAND_INS = str.maketrans(
    {
        **{"×": "x", "±": "+-", "·": "-", "–": "-", "−": "-", "→": "->", "…": "...", "µ": "u"},
        **{"⚠": "!", "≥": ">=", "≤": "<=", "“": '"', "”": '"', "‘": "'", "’": "'", "˒": ","},
        **{digit: str(value) for value, digit in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
    }
)
"""ASCII for the characters that moebench itself prints."""
FOOTNOTES = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹˒]+")


def _stand_in(error: UnicodeError) -> tuple[str, int]:
    """ASCII for what an encoding lacks: 1.2x, [1] for a footnote's mark, else an escape."""
    assert isinstance(error, UnicodeEncodeError)
    lacking = FOOTNOTES.sub(r"[\g<0>]", error.object[error.start : error.end])
    ascii_only = lacking.translate(STAND_INS).encode("ascii", "backslashreplace")
    return ascii_only.decode(), error.end


codecs.register_error("moebench", _stand_in)


class Answers:
    """Where answers go: to stdout, or to stderr as soon as stdout cannot be written."""

    def __init__(self) -> None:
        self.trouble: str | None = None
        """Why stdout cannot be written."""
        self.lacks_files = False
        """Whether a file beside the answer could not be written."""

    def write(self, text: str) -> None:
        """Write to the end of the stream; a reader that has gone is a BrokenPipeError."""
        if self.trouble is None:
            try:
                if sys.stdout is None:
                    raise OSError(errno.EBADF, "there is none")
                sys.stdout.write(text)
                sys.stdout.flush()
                return
            except (OSError, ValueError) as error:  # a ValueError: it was closed
                if isinstance(error, BrokenPipeError) or _is_closed_on_windows(error):
                    raise BrokenPipeError from error
                self.trouble = getattr(error, "strerror", None) or str(error).rstrip(".")
                discard(sys.stdout)
                NOTES.write(
                    f"error: stdout: cannot be written: {self.trouble}; the answer follows here\n"
                )
        NOTES.write(text)


class Notes:
    """Standard error: trouble there stops no verb, because notes and progress are no answer."""

    def write(self, text: str) -> None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except (AttributeError, OSError, ValueError):  # it is None, full or closed
            discard(sys.stderr)

    def flush(self) -> None:
        """Do nothing: every write is flushed."""

    def isatty(self) -> bool:
        with contextlib.suppress(AttributeError, ValueError):
            return sys.stderr.isatty()
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


NOTES: Any = Notes()
"""The stream of notes and progress bars."""


def ready_streams() -> None:
    """Have stdout and stderr take every character and wait for slow readers."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.reconfigure(errors="moebench")  # type: ignore[union-attr]
            os.set_blocking(stream.fileno(), True)


def discard(stream: Any) -> None:
    """Give up a stream, which the interpreter flushes once more at its end."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _is_closed_on_windows(error: Exception) -> bool:
    """Whether the reader of a pipe has gone, which Windows calls an invalid argument."""
    return os.name == "nt" and getattr(error, "errno", None) == errno.EINVAL
