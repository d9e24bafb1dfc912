"""Records of the instruments, and the Markdown tables beside them, read back."""

from pathlib import Path
from typing import Any

from moebench.doctor.record import CIRCUMSTANCES, SCHEMA, Circumstances
from moebench.records.checksum import read_document
from moebench.spec.schema import decode


def read_record(path: Path) -> tuple[Circumstances, dict[str, Any]]:
    """Circumstances and results of a record; a changed file raises ValueError."""
    record = read_document(path)
    assert record.pop("schema") == SCHEMA
    return decode(Circumstances, record.pop(CIRCUMSTANCES), str(path)), record


def table_rows(text: str) -> list[list[str]]:
    """Cells of a Markdown table's rows, without its head."""
    rows = [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    return [cells for cells in rows if not cells[0].startswith("---") and "router" not in cells[:2]]
