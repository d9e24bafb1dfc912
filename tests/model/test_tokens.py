"""A checkpoint's tokens, by its own tokeniser."""

from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="it loads tokenisers")

from moebench.model.huggingface.tokens import tokeniser_of  # noqa: E402


def test_a_tokeniser_says_where_its_tokens_stand(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    from transformers import PreTrainedTokenizerFast

    words = {"[UNK]": 0, "the": 1, "é": 2, "cat": 3}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=made).save_pretrained(tmp_path)
    data = "the é  cat".encode()
    tokens = tokeniser_of(tmp_path, 4)(data)
    assert tokens.ids.tolist() == [1, 2, 3]
    pieces = [data[a:b].decode() for a, b in zip(tokens.starts, tokens.ends, strict=True)]
    assert pieces == ["the", "é", "cat"]


def test_a_checkpoint_without_a_tokeniser_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"found no tokenizer, expected one of tokenizer\.json"):
        tokeniser_of(tmp_path, 32000)
