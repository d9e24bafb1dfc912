"""Files that a crash, a full disk or a second process cannot spoil.

Appending puts all bytes on the disk or leaves the file as it was. Replacing shows a reader the old
text or the new one. A directory has one writer at a time.
"""

import codecs
import contextlib
import errno
import os
from pathlib import Path

WRONG_PLACE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)
"""What the system says of a path that names no place for a file: a mistake of who named it."""


class OutputError(ValueError):
    """Something that was asked for cannot be written: the disk is full, read-only or forbidden."""


def not_written(path: Path | str, error: OSError, more: str = "") -> ValueError:
    """The error of a file or folder that cannot be written; `more` ends its sentence."""
    kind = ValueError if error.errno in WRONG_PLACE else OutputError
    return kind(f"{path}: cannot be written: {error.strerror}{more}")


def text_of(path: Path) -> str:
    """The text of a file, in UTF-8 or, where it begins with a mark that says so, in UTF-16."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    return decoded(data, str(path))


def decoded(data: bytes, where: str) -> str:
    """The text of some bytes without a byte order mark, which editors on Windows write."""
    encoding = "utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 text (byte {error.start})") from error


def append_bytes(path: Path, data: bytes) -> None:
    """Append to a file and sync it; if that fails, the file is as it was before."""
    before = path.stat().st_size if path.exists() else 0
    try:
        _write(path, os.O_APPEND, data, before)
    except OSError as error:
        raise not_written(path, error, "; what was written before is intact") from error


def replace_file(path: Path, data: bytes) -> None:
    """Write a whole file so that a reader, or a crash, meets the old text or the new one."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")  # two may write at once
    try:
        _write(temporary, os.O_TRUNC, data, 0)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise not_written(path, error) from error


def _write(path: Path, flag: int, data: bytes, length_before: int) -> None:
    """Write and sync all bytes; on failure cut the file to the length that it had."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | flag, 0o644)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, length_before)
        raise
    finally:
        os.close(descriptor)


def cache_directory() -> Path:
    """The folder of calibrations, noise and compiled kernels: `moebench` in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moebench"


def make_folder(folder: Path) -> None:
    """Make a folder with its parents, if it is not there; a file in its place is refused."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise ValueError(f"{folder}: cannot be written: found a file, expected a folder") from error
    except OSError as error:
        raise not_written(folder, error) from error


def acquire(directory: Path) -> int:
    """Lock the directory, or refuse it if another process has; a dead process holds no lock."""
    import fcntl  # measuring is for Linux; reports must import this module elsewhere too

    path = directory / ".lock"
    while True:
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise not_written(directory, error) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(lock, 32).decode(errors="replace").strip() or "unknown"
            os.close(lock)
            raise ValueError(f"{directory}: process {holder} is writing this run") from error
        # The last holder may have removed the file between our open and our lock.
        if path.exists() and os.fstat(lock).st_ino == path.stat().st_ino:
            # The number is for people: on a full disk the lock holds without it.
            with contextlib.suppress(OSError):
                os.ftruncate(lock, 0)
                os.write(lock, str(os.getpid()).encode())
            return lock
        os.close(lock)


def release(lock: int, directory: Path) -> None:
    """Unlock the directory, also if it has become read-only meanwhile."""
    with contextlib.suppress(OSError):
        (directory / ".lock").unlink()
    os.close(lock)
