"""How a verb speaks: its command line, tables, a progress bar, and the one exit of every error.

The answer goes to stdout, everything else to stderr. Text may come from a file that somebody else
wrote, so all of it is escaped here: a terminal obeys control characters and a reader misses them.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import zip_longest
from typing import Any, NoReturn

from moebench.files import OutputError
from moebench.streams import NOTES, Answers, discard, ready_streams
from moebench.units import Seconds, printable, quantity

BAD_INPUT = 2
"""Exit code of a verb that cannot use what it was given."""
NOT_WRITTEN = 4
"""Exit code where stdout or a file could not be written, as on a full disk."""
INTERRUPTED = 130
"""Exit code of a program that was stopped by Ctrl-C (128 + SIGINT)."""
CLOSED = 141
"""Exit code of a program whose reader has gone (128 + SIGPIPE), as in `... | head`."""

EXIT_CODES = "Exit codes: 0 done, 1 a check failed, 2 bad input, 3 done in part, 4 not written"
ALMOST = 0.99
"""Largest share that a bar shows while work goes on."""
_ANSWERS = Answers()


def run(answer: Callable[[], int]) -> int:
    """Call `answer` and return its exit code; a mistake, an interruption or trouble is one line.

    A ValueError is bad input, everywhere in moebench: its text becomes the line. Trouble with what
    is written, to stdout or to a file, has an exit code of its own.
    """
    ready_streams()
    _ANSWERS.trouble, _ANSWERS.lacks_files = None, False
    try:
        try:
            code = answer()
        except SystemExit:
            if _ANSWERS.trouble is None:
                raise
        is_whole = _ANSWERS.trouble is None and not _ANSWERS.lacks_files
        return code if is_whole else NOT_WRITTEN
    except OutputError as error:
        say(f"error: {error}")
        return NOT_WRITTEN
    except ValueError as error:
        say(f"error: {error}")
        return BAD_INPUT
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        discard(sys.stdout)
        return CLOSED


def say(line: object) -> None:
    """Print one line on stderr."""
    NOTES.write(f"{printable(str(line))}\n")


def write_beside(write: Callable[[], object]) -> None:
    """Write files beside an answer, which is shown all the same where a disk is full."""
    try:
        write()
    except OutputError as error:
        say(f"error: {error}")
        _ANSWERS.lacks_files = True


def show(text: object) -> None:
    """Print an answer for people on stdout."""
    _ANSWERS.write("\n".join(map(printable, str(text).split("\n"))) + "\n")


def show_json(document: object) -> None:
    """Print an answer for programs on stdout: one JSON document, ASCII only."""
    _ANSWERS.write(json.dumps(document, indent=1) + "\n")


class Parser(argparse.ArgumentParser):
    """A parser whose messages are escaped: a resumed run's command line comes from its manifest."""

    def print_help(self, file: object = None) -> None:
        """Print the help as an answer, which a full disk does not swallow."""
        _ANSWERS.write(self.format_help())

    def print_usage(self, file: object = None) -> None:
        """Print the usage beside the error that it belongs to."""
        NOTES.write(self.format_usage())

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """End the program; `message` is one line on stderr."""
        if message:
            say(message.rstrip("\n"))
        sys.exit(status)


def parser(verb: str, description: str, example: str) -> Parser:
    """The command line of a verb, with --json, and an example in its --help."""
    ready_streams()
    name = f"python -m moebench.{verb}"
    made = Parser(
        prog=name,
        description=f"{description} {EXIT_CODES}.",
        epilog=f"example: {name} {example}",
    )
    made.add_argument("--json", action="store_true", help="one JSON document on stdout")
    return made


DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
"""Plans of accelerate for filling devices with the layers of a model."""


def add_device(to: argparse.ArgumentParser, meaning: str = "") -> None:
    """Add --device: where to measure, or where to do what `meaning` says."""
    to.add_argument("--device", default="auto", help=f"{meaning}auto, cpu, cuda or cuda:N")


def add_device_map(to: argparse.ArgumentParser) -> None:
    """Add --device-map: how a checkpoint that one device does not hold is spread."""
    to.add_argument(
        "--device-map",
        choices=DEVICE_MAPS,
        metavar="PLAN",
        help="spread the checkpoint over GPUs, memory and files with accelerate, in place of "
        f"--device: {', '.join(DEVICE_MAPS)}",
    )


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
    """A progress bar on stderr over the wall time that a piece of work is expected to take.

    It is full only when the work has ended; work that takes longer is shown as being over its time.
    """

    def __init__(self, expected: Seconds) -> None:
        from tqdm import tqdm  # verbs that only compute start without it

        interactive = NOTES.isatty()
        self._bar: Any = tqdm(
            total=expected,
            unit="s",
            file=NOTES,
            leave=False,
            dynamic_ncols=interactive,
            # Without a terminal every refresh is a line of a log.
            mininterval=0.2 if interactive else 15.0,
            bar_format="{percentage:3.0f}% |{bar:20}| {desc}",
        )
        self.expected = expected
        self.started = time.perf_counter()

    def elapsed(self) -> Seconds:
        """Time since the bar began."""
        return time.perf_counter() - self.started

    def expect(self, seconds: Seconds) -> None:
        """Change the time that the whole work is expected to take."""
        self.expected = self._bar.total = seconds

    def tell(self, what: str) -> None:
        """Move the bar to now and say what runs."""
        elapsed = self.elapsed()
        self._bar.n = min(elapsed, ALMOST * self.expected)
        is_late = elapsed > self.expected
        rest = f"{_clock(abs(self.expected - elapsed))} {'over' if is_late else 'left'}"
        self._bar.set_description_str(
            f"{_clock(elapsed)} of {_clock(self.expected)}, {rest} | {printable(what)}",
            refresh=False,
        )
        self._bar.update(0)

    def say(self, line: object) -> None:
        """Print one line on stderr in place of the bar, which comes back at its next move."""
        self._bar.clear()
        say(line)

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
