"""English prose to train on, from Debian's packages, and a dictionary as text of another domain.

The prose is the documentation of Linux and of Python. `apt-get download` fetches, `dpkg-deb`
unpacks; nothing is installed, and no root is needed. The texts have their own licences: GPL-2, PSF,
GPL-2 or later.
"""

import gzip
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from moebench import terminal
from moebench.files import make_folder

Files = Iterator[tuple[str, bytes]]
"""Paths of files within their package, and their contents."""
MANUALS = {"linux-doc": r"linux-doc-[\d.]+", "python3-doc": r"python3\.\d+-doc"}
"""Packages whose newest version depends on one that has the texts, and the name of that one."""
DICTIONARY = "dict-gcide"
ENTRIES = 200
"""Entries of the dictionary in a file, about 60 kB: a text is split into parts by file."""


@dataclass(frozen=True)
class Fetched:
    """The text of one package."""

    part: Literal["prose", "shifted"]
    """Subfolder: text to train on, or text of another domain."""
    package: str
    version: str
    files: int
    bytes: int


def fetch_prose(folder: Path) -> list[Fetched]:
    """Fetch the texts into a new folder; a ValueError where a package cannot be had."""
    if folder.exists():
        raise ValueError(f"{folder}: found an existing path, expected a new folder")
    beside = folder.absolute().parent
    make_folder(beside)
    found: list[Fetched] = []
    with tempfile.TemporaryDirectory(dir=beside) as work:
        made = Path(work) / "text"
        for name, pattern in MANUALS.items():
            package = _provider(name, pattern)
            version, root = _unpacked(package, Path(work) / name)
            written = write(pages(root), made / "prose" / name)
            found.append(Fetched("prose", package, version, *written))
        version, root = _unpacked(DICTIONARY, Path(work) / DICTIONARY)
        written = write(dictionary(root), made / "shifted" / DICTIONARY)
        found.append(Fetched("shifted", DICTIONARY, version, *written))
        for each in found:
            if not each.files:
                raise ValueError(f"{each.package} {each.version}: found no text in the package")
        made.rename(folder)
    return found


def pages(root: Path) -> Files:
    """The sources of a manual in reStructuredText, without translations."""
    for file in sorted(root.rglob("*.rst.txt")):
        place = file.relative_to(root).as_posix().rpartition("/_sources/")[2]
        if not place.startswith("translations/"):
            yield place.removesuffix(".txt"), file.read_bytes()


def dictionary(root: Path) -> Files:
    """The entries of a dictionary in dictd's format, `ENTRIES` a file; an entry starts a line."""
    for file in sorted(root.rglob("*.dict.dz")):  # dictzip: gzip with an index
        text = gzip.decompress(file.read_bytes()).decode(errors="replace")
        entries = re.split(r"(?<=\n)(?=\S)", text)
        for number in range(0, len(entries), ENTRIES):
            name = f"{file.name.partition('.')[0]}-{number // ENTRIES:04}.txt"
            yield name, "".join(entries[number : number + ENTRIES]).encode()


def write(files: Iterable[tuple[str, bytes]], folder: Path) -> tuple[int, int]:
    """Write files below a folder; how many they are, and their bytes."""
    count = size = 0
    for name, data in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        count, size = count + 1, size + len(data)
    return count, size


def _provider(name: str, pattern: str) -> str:
    """The package that `name` depends on for its content; `name` itself where it names none."""
    listed = _run(["apt-cache", "depends", name])
    found = re.search(rf"Depends: ({pattern})$", listed, re.MULTILINE)
    return found[1] if found else name


def _unpacked(package: str, folder: Path) -> tuple[str, Path]:
    """Version of a package, and the folder with its files."""
    terminal.say(f"fetching {package}")
    folder.mkdir()
    _run(["apt-get", "download", package], folder)
    archive = next(folder.glob("*.deb"))
    _run(["dpkg-deb", "-x", archive.name, "files"], folder)
    return _run(["dpkg-deb", "-f", archive.name, "Version"], folder).strip(), folder / "files"


def _run(command: Sequence[str], folder: Path | None = None) -> str:
    """What a program prints; a ValueError with its last words where it fails or is not there."""
    program = command[0]
    if shutil.which(program) is None:
        raise ValueError(f"{program} is not installed: the texts come from packages of Debian")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        words = [line for line in done.stderr.splitlines() if not line.startswith("W:")]
        last = words[-1].removeprefix("E: ") if words else f"exit code {done.returncode}"
        raise ValueError(
            f"{' '.join(command)}: {last} (it needs a network, and package lists: apt-get update)"
        )
    return done.stdout
