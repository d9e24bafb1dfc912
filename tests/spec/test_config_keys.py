"""What keys of config.json files mean here: every answer names a field that exists."""

from collections.abc import Callable
from dataclasses import fields
from fnmatch import fnmatchcase

import pytest

from moebench.spec.attention import Attention, RopeScaling
from moebench.spec.config_keys import HARDWARE_KEYS, MODEL_KEYS, same_keys
from moebench.spec.gate import Gate
from moebench.spec.hardware import HardwareSpec, load_hardware
from moebench.spec.model import ModelSpec, load_model
from moebench.spec.schema import read_toml
from moebench.suite.suite_file import load_suite
from moebench.version import PACKAGE

CLASSES = {
    "model": ModelSpec,
    "attention": Attention,
    "gate": Gate,
    "rope_scaling": RopeScaling,
    "hardware": HardwareSpec,
}
DTYPES = {"bfloat16", "float16", "float8", "float32", "float4"}


@pytest.mark.parametrize("table", CLASSES)
def test_every_key_of_the_table_is_a_field_and_no_foreign_key_is(table: str) -> None:
    own = {field.name for field in fields(CLASSES[table])} | (
        DTYPES if table == "hardware" else set()
    )
    for foreign, (_, ours) in same_keys(table).items():
        assert ours in own
        assert foreign not in own


def test_no_key_has_two_meanings() -> None:
    known = read_toml(PACKAGE / "data" / "config_keys.toml")
    listed = [
        name for table in ("model", "attention", "gate") for names in known[table].values()
        for name in names
    ]  # fmt: skip
    listed += [name for names in known["not_supported"].values() for name in names]
    listed += [*known["other_notes"], *known["without_cost"]["keys"]]
    assert len(listed) == len(set(listed)) > 150
    assert set(known["notes"]) <= set(listed)
    patterns = [name for name in listed if "*" in name]
    assert not [(k, p) for k in listed for p in patterns if k != p and fnmatchcase(k, p)]


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("num_experts_per_tok", ": it is 'top_k' here"),
        ("NUM_LOCAL_EXPERTS", ": it is 'num_experts' here"),
        ("num_attention_heads", ": it is 'num_heads' in [attention] here"),
        ("norm_topk_prob", ": it is 'renormalise' in [gate] here"),
        ("rope_type", ": it is 'kind' in [attention.rope_scaling] here"),
        ("num_heads", ": it belongs in [attention]"),
        ("top_k", ": it belongs above the first [table]"),
        ("index_topk", ": not supported: sparse attention over an index; --level moe prices"),
        ("mamba_d_state", ": not supported: Mamba layers; --level moe prices the experts"),
        ("num_labels", ": leave it out, a step costs the same with it"),
        ("bos_token_id", ": leave it out, a step costs the same with it"),
        ("no_such_word", ""),
    ],
)
def test_an_unknown_key_of_a_model_is_explained(key: str, said: str) -> None:
    found = MODEL_KEYS.meaning(key)
    assert found.startswith(said) and bool(found) == bool(said)


def test_words_of_datasheets_are_explained() -> None:
    assert HARDWARE_KEYS.meaning("VRAM") == ": it is 'memory_capacity' here"
    assert HARDWARE_KEYS.meaning("no_such_word") == ""


@pytest.mark.parametrize(
    ("load", "name", "said"),
    [
        (
            load_model,
            "hardware/h100-sxm",
            "found a description of a machine, expected one of a model",
        ),
        (
            load_hardware,
            "models/mixtral-8x7b",
            "found a description of a model, expected one of a m",
        ),
        (
            load_suite,
            "models/mixtral-8x7b",
            "found a description of a model, expected one of a suite",
        ),
    ],
)
def test_a_file_of_another_kind_is_called_so(
    load: Callable[[str], object], name: str, said: str
) -> None:
    path = PACKAGE / "data" / f"{name}.toml"
    with pytest.raises(ValueError) as refusal:
        load(str(path))
    assert str(refusal.value).startswith(f"{path}: {said}")


def test_a_missing_key_says_what_it_is_for() -> None:
    assert HARDWARE_KEYS.purpose("cache") == " (last level, a GPU's L2: what stays near)"
    assert MODEL_KEYS.purpose("num_layers") == " (num_hidden_layers in a config.json)"
    assert MODEL_KEYS.purpose("hidden_size") == ""
