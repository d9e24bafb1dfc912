"""Texts: parts by file, batches that depend on seed and step alone, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

from moebench.model.huggingface.tokens import Tokens
from moebench.train.text import Text, load_text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(200):
        (tmp_path / f"{number}.txt").write_text(f"file {number} " * 20, encoding="utf-8")
    return tmp_path


def of_bytes(number: int) -> Text:
    data = (torch.arange(number) % 251).to(torch.uint8)
    return Text("counted", "", {"train": data, "validation": data, "test": data}, {})


def test_a_file_stays_in_its_part_whatever_its_name_and_its_neighbours(folder: Path) -> None:
    before = load_text(folder)
    (folder / "199.txt").unlink()
    (folder / "0.txt").rename(folder / "renamed.txt")
    after = load_text(folder)
    assert sum(before.num_files.values()) == 200
    assert all(before.num_files.values()), "200 files leave no part empty"
    for part, data in after.parts.items():
        assert bytes(data.tolist()) in bytes(before.parts[part].tolist()) or len(data) < len(
            before.parts[part]
        )
        for name in ("0", "7", "42"):
            text = f"file {name} ".encode()
            assert (text in bytes(data.tolist())) == (text in bytes(before.parts[part].tolist()))
    assert before.sha256 != after.sha256


def test_equal_files_count_once(folder: Path) -> None:
    before = load_text(folder)
    (folder / "copy.txt").write_bytes((folder / "3.txt").read_bytes())
    assert load_text(folder).sha256 == before.sha256


def test_the_windows_of_an_epoch_are_each_byte_once() -> None:
    text = of_bytes(1 + 40 * 16 + 15)
    targets = torch.cat([text.batch(3, step, (4, 16))[:, :-1] for step in range(10)])
    starts = [int(row[0]) for row in targets]
    assert len(set(starts)) == 40
    assert not torch.equal(text.batch(3, 0, (4, 16)), text.batch(4, 0, (4, 16)))
    assert not torch.equal(text.batch(3, 0, (4, 16)), text.batch(3, 10, (4, 16)))
    assert torch.equal(text.batch(3, 2, (4, 16)), text.batch(3, 2, (4, 16)))


def test_a_target_is_the_next_byte() -> None:
    window = of_bytes(1000).windows("test", 7, 32)
    assert window.shape == (7, 33)
    assert torch.equal((window[:, :-1] + 1) % 251, window[:, 1:])


def test_the_library_is_the_default_and_has_no_test_folder() -> None:
    text = load_text()
    assert text.name == "python-stdlib"
    assert len(text.parts["train"]) > 5_000_000
    assert min(len(text.parts["validation"]), len(text.parts["test"])) > 512 * 257


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"abc\0def", "byte 3.*UTF-8 text"), (b"ab\xff", "byte 2.*UTF-8 text")],
)
def test_a_binary_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "data.bin").write_bytes(content)
    with pytest.raises(ValueError, match=f"data.bin: found a binary file .*{message}"):
        load_text(tmp_path)


def test_an_empty_folder_and_a_short_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="empty folder"):
        load_text(tmp_path)
    with pytest.raises(ValueError, match="found 60 tokens for training, expected at least 81"):
        of_bytes(60).batch(1, 0, (4, 16))
    with pytest.raises(ValueError, match="found 60 tokens of validation text"):
        of_bytes(60).windows("validation", 8, 16)
    with pytest.raises(ValueError, match="cannot be read"):
        load_text(tmp_path / "absent.txt")


def test_a_text_is_split_alike_whatever_its_tokens(tmp_path: Path) -> None:
    """No piece ends within a character; parts hold the tokens of their own files."""
    (tmp_path / "a.txt").write_text("aé€" * 30_000, encoding="utf-8")

    def characters(data: bytes) -> Tokens:
        ids = np.array([ord(c) for c in data.decode()], np.int64)
        return Tokens(data, ids, ids, ids)

    plain, tokens = load_text(tmp_path / "a.txt"), load_text(tmp_path / "a.txt", characters)
    assert plain.sha256 == tokens.sha256 and plain.num_files == tokens.num_files
    assert sum(plain.num_files.values()) > 1
    for part, data in plain.parts.items():
        decoded = bytes(data.tolist()).decode()
        assert [ord(c) for c in decoded] == tokens.parts[part].tolist()
