"""Specs: what a file may say, what is refused, and how a name is found."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moebench.spec.case import Case, OperatingPoint, RouterSpec, Workload
from moebench.spec.hardware import HardwareSpec, load_hardware
from moebench.spec.model import ModelSpec, load_model, scaled_down
from moebench.spec.schema import from_mapping

MODEL: dict[str, Any] = {
    "name": "small",
    "source": "made for tests",
    "num_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 16,
    "num_experts": 8,
    "top_k": 2,
    "vocab_size": 64,
    "attention": {"kind": "gqa", "num_heads": 4, "num_kv_heads": 2, "head_dim": 8},
    "gate": {"score": "softmax", "renormalise": True},
}
MACHINE: dict[str, Any] = {
    "name": "box",
    "title": "A box",
    "kind": "gpu",
    "source": "made for tests",
    "peak": {"bfloat16": "1 TFLOP/s"},
    "memory_bandwidth": "1 TB/s",
    "memory_capacity": "1 GB",
    "cache": "1 MiB",
}


def changed(table: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy of the table with one key, dotted for nested tables, set to a value."""
    head, _, rest = key.partition(".")
    return table | {head: changed(table.get(head, {}), rest, value) if rest else value}


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("top_k", 9, "top_k: found 9, expected at most num_experts = 8"),
        ("top_k", 0, "top_k: found 0, expected 1 to"),
        ("num_experts", -8, "num_experts: found -8, expected 1 to"),
        ("vocab_size", 0, "vocab_size: found 0, expected 1 to"),
        ("num_dense_layers", 3, "num_dense_layers: found 3, expected at most num_layers = 2"),
        ("num_dense_layers", 1, "dense_intermediate_size: found 0, expected the width of the 1"),
        ("attention.num_kv_heads", 3, "num_kv_heads: found 3, expected a divisor of num_heads = 4"),
        ("attention.num_kv_heads", 0, "num_kv_heads: found 0, expected 1 to"),
        ("attention.kind", "mla", "kv_rank: found 0, expected 1 to"),
        ("attention.kind", "mqa", "kind: found 'mqa', expected one of 'gqa', 'mla'"),
        ("attention.head_dims", 8, "unknown key 'head_dims'; did you mean 'head_dim'?"),
        ("gate.num_groups", 3, "num_groups: found 3, expected a divisor of num_experts = 8"),
        ("gate.num_groups", 0, "num_groups: found 0, expected 1 to"),
        ("gate.num_groups", 8, "that leaves top_k = 2 experts to choose from"),
        ("gate.top_k_groups", 2, "top_k_groups: found 2, expected at most num_groups = 1"),
        ("gate.score", "softmaxx", "found 'softmaxx', expected one of 'softmax', 'sigmoid'; did"),
        ("gate.scale", 0.0, "scale: found 0.0, expected more than 0"),
        ("hidden_size", 32.0, "hidden_size: found 32.0, expected an integer"),
        ("num_expert", 8, "unknown key 'num_expert'; did you mean 'num_experts'?"),
        ("total_parameters", 46.7, "found 46.7, expected a string such as '46.7 B'"),
    ],
)
def test_a_model_that_cannot_be_is_refused(key: str, value: Any, complaint: str) -> None:
    with pytest.raises(ValueError) as refusal:
        from_mapping(ModelSpec, changed(MODEL, key, value), "models/small.toml")
    assert str(refusal.value).startswith("models/small.toml: ")
    assert complaint in str(refusal.value)


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("memory_bandwidth", "1 TB", "memory_bandwidth: found unit 'TB' in '1 TB', expected a str"),
        ("memory_bandwidth", 3.35, "memory_bandwidth: found 3.35, expected a string such as '3.35"),
        ("memory_bandwidth", "0 TB/s", "memory_bandwidth: found 0, expected more"),
        ("peak", {"bfloat16": "1 TB/s"}, "peak.bfloat16: found unit 'TB/s'"),
        ("peak", {"float8": "0 FLOP/s"}, "peak.float8: found 0, expected more"),
        ("num_processors", 0, "num_processors: found 0, expected 1 to"),
        ("kind", "tpu", "kind: found 'tpu', expected one of 'gpu', 'cpu'"),
        ("interconnect", "NVLink", "interconnect: found 'NVLink', expected a table"),
        ("clok", "1 GHz", "unknown key 'clok'; did you mean 'clock'?"),
    ],
)
def test_a_machine_that_cannot_be_is_refused(key: str, value: Any, complaint: str) -> None:
    with pytest.raises(ValueError) as refusal:
        from_mapping(HardwareSpec, changed(MACHINE, key, value), "box.toml")
    assert str(refusal.value).startswith("box.toml: ")
    assert complaint in str(refusal.value)


@pytest.mark.parametrize(
    ("load", "name", "complaint"),
    [
        (load_model, "mixtral-8x7", "unknown model 'mixtral-8x7'; did you mean 'mixtral-8x7b'?"),
        (load_hardware, "h100-sxmm", "unknown hardware 'h100-sxmm'; did you mean 'h100-sxm'?"),
        (load_model, "../secret", "unknown model"),
        (load_model, "absent.toml", "absent.toml: cannot be read"),
        (load_hardware, "absent.toml", "absent.toml: cannot be read"),
    ],
)
def test_an_unknown_name_is_refused(
    load: Callable[[str], object], name: str, complaint: str
) -> None:
    with pytest.raises(ValueError) as refusal:
        load(name)
    assert complaint in str(refusal.value)


def test_a_machine_of_ones_own_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "box.toml"
    path.write_text(
        "\n".join(f'{key} = "{value}"' for key, value in MACHINE.items() if isinstance(value, str))
        + '\n[peak]\nbfloat16 = "1 TFLOP/s"\n'
    )
    assert load_hardware(str(path)).peak_for("bfloat16") == 1e12


VALUES = st.one_of(
    st.booleans(),
    st.integers(),
    st.integers(min_value=-1, max_value=9),
    st.floats(),
    st.text(max_size=6),
    st.sampled_from(["gqa", "mla", "softmax", "1 TB/s", "1 B", "full"]),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.sampled_from(["kind", "bfloat16", "name"]), st.text(max_size=5)),
)
MODEL_KEYS = st.sampled_from(
    [*ModelSpec.__dataclass_fields__]
    + [f"attention.{key}" for key in ("kind", "num_heads", "num_kv_heads", "head_dim", "kv_rank")]
    + [f"gate.{key}" for key in ("num_groups", "top_k_groups", "scale", "score")]
)


@given(changes=st.lists(st.tuples(MODEL_KEYS, VALUES), max_size=3))
def test_any_model_table_gives_a_model_or_a_complaint(changes: list[tuple[str, Any]]) -> None:
    table = MODEL
    for key, value in changes:
        head = key.partition(".")[0]
        nests = key == head or isinstance(table[head], dict)
        table = changed(table, key, value) if nests else table
    try:
        model = from_mapping(ModelSpec, table, "fuzzed.toml")
    except ValueError as refusal:
        assert str(refusal).startswith("fuzzed.toml: ")
    else:
        assert 1 <= model.top_k <= model.num_experts


@given(key=st.sampled_from([*HardwareSpec.__dataclass_fields__]), value=VALUES)
def test_any_machine_table_gives_a_machine_or_a_complaint(key: str, value: Any) -> None:
    try:
        machine = from_mapping(HardwareSpec, changed(MACHINE, key, value), "fuzzed.toml")
    except ValueError as refusal:
        assert str(refusal).startswith("fuzzed.toml: ")
    else:
        assert machine.memory_bandwidth > 0


@pytest.mark.parametrize("distribution", [(0.5, 0.4), (1.5, -0.5), (2.0,)])
def test_a_distribution_must_be_one(distribution: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="expected probabilities that sum to 1"):
        OperatingPoint(distribution, "imposed", "test")


def test_mean_k_is_the_mean_of_the_distribution() -> None:
    assert OperatingPoint((0.0, 0.6, 0.4), "imposed", "test").mean_k == pytest.approx(1.4)


def test_a_narrow_copy_routes_alike(tiny: ModelSpec) -> None:
    mixtral = load_model("mixtral-8x7b")
    narrow = scaled_down(mixtral, 8)
    assert narrow.hidden_size * 8 == mixtral.hidden_size
    assert narrow.intermediate_size * 8 == mixtral.intermediate_size
    assert (narrow.num_experts, narrow.top_k) == (mixtral.num_experts, mixtral.top_k)
    assert narrow.gate == mixtral.gate
    glm = load_model("glm-4.5-air")  # half of a head rotates, in the narrow copy too
    assert scaled_down(glm, 8).attention.rotary_dim * 2 == scaled_down(glm, 8).attention.head_dim
    assert scaled_down(tiny, 1) is tiny


def test_every_part_of_a_case_that_changes_the_number_changes_its_key() -> None:
    """`--resume` compares keys: two different measurements must not share one."""
    workload = Workload("decode", "moe", 4, 1, 1024)
    point = OperatingPoint((0.0, 0.0, 1.0), "imposed", "test")
    case = Case("m", RouterSpec("top-k"), workload, point, "grouped", "eager", 1)
    others = [
        replace(case, model="n"),
        replace(case, router=RouterSpec("ada-k")),
        replace(case, backend="loop"),
        replace(case, launch="graph"),
        replace(case, num_layers=2),
        *(
            replace(case, workload=replace(workload, **change))
            for change in (
                {"phase": "prefill"},
                {"level": "decoder"},
                {"batch": 5},
                {"sequence_length": 2},
                {"context_length": 0},
                {"dtype": "float32"},
            )
        ),
    ]
    assert len({case.key, *(other.key for other in others)}) == len(others) + 1
