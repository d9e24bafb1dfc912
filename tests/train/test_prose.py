"""Prose from packages: what is taken out of a package, and that it makes a text."""

import gzip
from pathlib import Path

import pytest

from moebench.train import prose
from moebench.train.cli import main
from moebench.train.text import load_text

MANUAL = "usr/share/doc/manual/html/_sources"


def test_a_manuals_sources_are_taken_without_translations(tmp_path: Path) -> None:
    for name in ("index", "admin/boot", "translations/zh/index", "admin/translations"):
        page = tmp_path / MANUAL / f"{name}.rst.txt"
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(name, encoding="utf-8")
    (tmp_path / MANUAL / "../index.html").write_text("<html>", encoding="utf-8")
    assert dict(prose.pages(tmp_path)) == {
        "admin/boot.rst": b"admin/boot",
        "admin/translations.rst": b"admin/translations",
        "index.rst": b"index",
    }


def test_a_dictionarys_entries_stay_whole_and_make_a_text_of_all_parts(tmp_path: Path) -> None:
    entries = [
        f"Word{n} \\Word\\, n.\n   Meaning {n}.\n\n   See {{Other}}.\n\n" for n in range(30_000)
    ]
    packed = tmp_path / "files" / "gcide.dict.dz"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress("".join(entries).encode() + b"bad \x92\n", compresslevel=1))
    found = dict(prose.dictionary(packed.parent))
    assert len(found) == 30_001 // prose.ENTRIES + 1
    assert found["gcide-0000.txt"] == "".join(entries[: prose.ENTRIES]).encode()
    assert found["gcide-0150.txt"] == "bad \N{REPLACEMENT CHARACTER}\n".encode()
    count, size = prose.write(found.items(), tmp_path / "text")
    text = load_text(tmp_path / "text")
    assert sum(text.num_files.values()) == count and all(text.num_files.values())
    assert sum(map(len, text.parts.values())) == size


def test_without_apt_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["prose", "--out", str(tmp_path / "text")]) == 2
    assert capsys.readouterr().err == (
        "error: apt-cache is not installed: the texts come from packages of Debian\n"
    )
    assert not [*tmp_path.iterdir()], "nothing half done is left"


def test_an_existing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found an existing path, expected a new folder"):
        prose.fetch_prose(tmp_path)
