"""Files of Hugging Face families agree with the fields, with each other, and with their page."""

import importlib.util

import pytest
from spec.family_table import MARK, PAGE, tables

from moebench.spec.config_keys import TABLES, same_keys
from moebench.spec.huggingface.families import families_by_name, family, family_names, harmless_keys
from moebench.spec.huggingface.keys import KEYS
from moebench.spec.huggingface.reading import kinds

READ_TWICE = {
    "attention_bias": "of the output projection too",
    "ffn_hidden_size": "of experts in DBRX, of dense networks in LongCat",
}
"""Keys that stand for two fields."""


def test_the_page_has_the_families() -> None:
    """`python tests/spec/family_table.py` makes it again."""
    assert PAGE.read_text(encoding="utf-8").partition(MARK)[2] == tables()


@pytest.mark.parametrize("name", family_names())
def test_a_family_names_fields_that_exist(name: str) -> None:
    """Fields of the network, each from a fact or from a key; a source; keys with one meaning."""
    row = family(name)
    switched = {field for fields in row.switches.values() for field in fields}
    assert {*row.keys, *row.facts, *switched} <= {*kinds()}
    assert not {*row.keys} & {*row.facts}
    assert row.source and name not in families_by_name()
    known = {*row.defaults, *row.optional}
    assert not known & {*row.described}, "a key is read or has one value that is described"
    assert not known & {*row.harmless}


def test_no_key_that_is_read_counts_as_harmless() -> None:
    """A key in the list of harmless ones would never be listed as not understood."""
    read = {key for name in family_names() for key in family(name).keys.values()}
    assert not read & harmless_keys() - {"max_position_embeddings"}


def test_messages_and_the_reader_call_keys_the_same() -> None:
    """What a message on an unknown key says is what a config.json with that key is read as."""
    told = same_keys(*TABLES)
    for field, keys in KEYS.items():
        table, _, name = f"model.{field}".rpartition(".")
        ours = (table.removeprefix("model.") or "model", name)
        for key in keys:
            assert told.get(key, ours) == ours or key in READ_TWICE, key


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="transformers is not installed"
)
def test_every_model_type_of_transformers_is_known() -> None:
    """Families in full, in part, or by name: all that transformers 5.23.0 has."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    assert not {*CONFIG_MAPPING_NAMES} - {*family_names(), *families_by_name()}
