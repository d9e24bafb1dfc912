"""How a verb speaks: its command line, tables, a progress bar, and the one exit of every error.

The answer goes to stdout, everything else to stderr. Text may come from a file that somebody else
wrote, so all of it is escaped here: a terminal obeys control characters and a reader misses them.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import zip_longest
from typing import Any, NoReturn

from moebench.units import Seconds, printable, quantity

BAD_INPUT = 2
"""Exit code of a verb that cannot use what it was given."""
INTERRUPTED = 130
"""Exit code of a program that was stopped by Ctrl-C (128 + SIGINT)."""
CLOSED = 141
"""Exit code of a program whose reader has gone (128 + SIGPIPE), as in `... | head`."""


def run(answer: Callable[[], int]) -> int:
    """Call `answer` and return its exit code; a user's mistake or an interruption is one line.

    A ValueError is bad input, everywhere in moebench: its text becomes the line.
    """
    try:
        try:
            return answer()
        finally:
            sys.stdout.flush()
    except ValueError as error:
        say(f"error: {error}")
        return BAD_INPUT
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes stdout once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED


def say(line: object) -> None:
    """Print one line on stderr."""
    print(printable(str(line)), file=sys.stderr)


def show(text: object) -> None:
    """Print an answer for people on stdout."""
    print("\n".join(map(printable, str(text).split("\n"))))


def show_json(document: object) -> None:
    """Print an answer for programs on stdout: one JSON document, ASCII only."""
    print(json.dumps(document, indent=1))


class Parser(argparse.ArgumentParser):
    """A parser whose messages are escaped: a resumed run's command line comes from its manifest."""

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """End the program; `message` is one line on stderr."""
        if message:
            say(message.rstrip("\n"))
        sys.exit(status)


def parser(verb: str, description: str, example: str) -> Parser:
    """The command line of a verb, with --json, and an example in its --help."""
    name = f"python -m moebench.{verb}"
    made = Parser(prog=name, description=description, epilog=f"example: {name} {example}")
    made.add_argument("--json", action="store_true", help="one JSON document on stdout")
    return made


def add_device(to: argparse.ArgumentParser) -> None:
    """Add --device: where to measure."""
    to.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")


def seconds(option: str, text: str) -> Seconds:
    """Read the time that an option was given, such as "8 min"; an error names the option."""
    try:
        return quantity(text, "time")
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from error


def text_table(
    titles: Sequence[str], rows: Iterable[Sequence[str] | str], left: Collection[int] = (0,)
) -> str:
    """A table for people: columns as wide as their widest cell, two spaces apart.

    Args:
        titles: of the columns; a line break in one gives the head several lines.
        rows: cells of each row; a string in place of a row is a line across the table.
        left: columns set flush left, texts as a rule; the others are set flush right.
    """
    columns = [title.split("\n")[::-1] for title in titles]
    head = [*zip_longest(*columns, fillvalue="")][::-1]
    lines: list[Sequence[str] | str] = [
        line if isinstance(line, str) else [printable(cell) for cell in line]
        for line in (*head, *rows)
    ]
    widths = [
        max(len(line[i]) for line in lines if not isinstance(line, str)) for i in range(len(titles))
    ]

    def aligned(cells: Sequence[str]) -> str:
        sides = ["<" if i in left else ">" for i in range(len(widths))]
        each = zip(cells, sides, widths, strict=True)
        return "  ".join(f"{cell:{side}{width}}" for cell, side, width in each).rstrip()

    return "\n".join(printable(line) if isinstance(line, str) else aligned(line) for line in lines)


class Bar:
    """A progress bar on stderr over a known amount of wall time, such as a time budget."""

    def __init__(self, expected: Seconds) -> None:
        from tqdm import tqdm  # verbs that only compute start without it

        interactive = sys.stderr.isatty()
        self._bar: Any = tqdm(
            total=round(expected),
            unit="s",
            file=sys.stderr,
            leave=False,
            dynamic_ncols=interactive,
            # Without a terminal every refresh is a line of a log.
            mininterval=0.2 if interactive else 15.0,
            bar_format="{percentage:3.0f}% |{bar:20}| {desc}",
        )
        self._expected = expected
        self._start = time.perf_counter()

    def tell(self, what: str) -> None:
        """Move the bar to now and say what runs."""
        elapsed = time.perf_counter() - self._start
        left = max(0.0, self._expected - elapsed)
        self._bar.n = min(round(elapsed), self._bar.total)
        self._bar.set_description_str(
            f"{_clock(elapsed)} of {_clock(self._expected)}, {_clock(left)} left | "
            f"{printable(what)}",
            refresh=False,
        )
        self._bar.update(0)

    def __call__(self, share: float, what: str) -> None:
        """Say what runs, for instruments that also report the share of the work that is done."""
        self.tell(what)

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()


def _clock(seconds: Seconds) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
