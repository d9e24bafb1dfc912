"""One JSON document in a file, in which no byte can change its meaning unnoticed.

The last key, "crc32", is the CRC-32 of the rest in one spelling (sorted keys, no spaces), so that
indentation does not count. Documents of older versions have none and load as they are.
"""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moebench.files import replace_file

KEY = "crc32"


def write_document(path: Path, table: Mapping[str, Any]) -> None:
    """Replace a file by a table with its checksum.

    Raises:
        ValueError: it cannot be written.
    """
    sealed = {**table, KEY: checksum(table)}
    text = json.dumps(sealed, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    replace_file(path, text.encode())


def read_document(path: Path) -> dict[str, Any]:
    """The table of a file, without its checksum.

    Raises:
        ValueError: the file cannot be read, holds no JSON table, or was changed since it was
            written.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except RecursionError as error:
        raise ValueError(f"{path}: not valid JSON: nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(table, dict):
        raise ValueError(f"{path}: found a {type(table).__name__}, expected a table")
    sealed = table.pop(KEY, None)
    if sealed is not None and sealed != checksum(table):
        raise ValueError(
            f"{path}: damaged (its checksum does not fit); restore it, or take out the key "
            f"{KEY!r} if it was edited on purpose"
        )
    return table


def checksum(table: Mapping[str, Any]) -> str:
    """CRC-32 of a table's one spelling, as eight hexadecimal digits."""
    spelling = json.dumps(table, sort_keys=True, separators=(",", ":"))
    return f"{zlib.crc32(spelling.encode()):08x}"
