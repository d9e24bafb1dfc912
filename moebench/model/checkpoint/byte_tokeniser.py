"""A tokeniser of bytes in the files that transformers reads: the id of a token is its byte.

**Source** of the characters that stand for bytes: the byte-level tokenisers of GPT-2 (Radford et
al., 2019), in which printable characters of Latin-1 stand for themselves and the other bytes, in
order, for the characters from U+0100 on.
"""

import json
from pathlib import Path

from moebench.files import replace_file

PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
END_OF_TEXT = ord("\n")
"""The byte that stands before and after a text where a program asks for such a token."""


def byte_characters() -> list[str]:
    """The character that stands for each byte."""
    others = [byte for byte in range(256) if byte not in PRINTABLE]
    return [chr(byte if byte in PRINTABLE else 0x100 + others.index(byte)) for byte in range(256)]


def write_byte_tokeniser(folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json into a checkpoint's folder."""
    characters = byte_characters()
    bytes_alone = {
        "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False
    }  # fmt: skip
    vocabulary = {character: byte for byte, character in enumerate(characters)}
    tokeniser = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": bytes_alone,
        "decoder": bytes_alone,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": characters[END_OF_TEXT],
        "clean_up_tokenization_spaces": False,
    }
    for name, content in (("tokenizer", tokeniser), ("tokenizer_config", config)):
        text = json.dumps(content, ensure_ascii=False, indent=1)
        replace_file(folder / f"{name}.json", f"{text}\n".encode())
