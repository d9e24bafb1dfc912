"""What predict says of models themselves: counts, what a description leaves out, and lists."""

from collections.abc import Iterable, Sequence
from typing import Any

from moebench.predict.document import document
from moebench.predict.serving.counts import counts, counts_text, model_caveats
from moebench.spec.hardware import hardware_names, load_hardware
from moebench.spec.layer import cache_elements_per_token
from moebench.spec.model import ModelSpec, load_model, model_names
from moebench.spec.parameters import attention_parameters, dense_parameters, shared_parameters
from moebench.spec.schema import encode
from moebench.spec.weight_types import weight_type
from moebench.terminal import text_table
from moebench.units import text

CACHE_BYTES = 2
"""Bytes of one element of the KV cache, in bfloat16."""
PLAIN_BYTES = 2
"""Embedding tables, head, norms and router stay in 16 bits in quantised checkpoints."""


def answer(flag: str, names: Sequence[str], as_json: bool) -> str:
    """Answer of --describe, --list-models or --list-hardware."""
    if flag == "describe":
        return describe([load_model(name) for name in names], as_json)
    return {"list_models": list_models, "list_hardware": list_hardware}[flag](as_json)


def describe(models: Sequence[ModelSpec], as_json: bool) -> str:
    """All that is understood of some models, as tables or as JSON."""
    described = [description(model) for model in models]
    if as_json:
        return document(**described[0]) if len(models) == 1 else document(models=described)
    return "\n\n".join(map(_table, models, described))


def description(model: ModelSpec) -> dict[str, Any]:
    """All that is understood of a model, with units in its keys."""
    total, active = counts(model)
    attention = model.attention
    cached = CACHE_BYTES * cache_elements_per_token(attention)
    windowed = attention.windowed_among(model.num_layers)
    table = model.vocab_size * model.hidden_size
    weights = None
    if total is not None:
        moe = model.num_moe_layers
        experts = moe * model.num_experts * model.expert_parameters
        others = model.num_layers * attention_parameters(model) + moe * shared_parameters(model)
        others += (model.num_layers - moe) * dense_parameters(model)
        weights = experts * weight_type(model.expert_weights).bytes_per_element
        weights += others * weight_type(model.other_weights).bytes_per_element
        weights += (total - experts - others) * PLAIN_BYTES
    whole = model.moe_level_only == ""
    return {
        **encode(model),
        "total_parameters": total,
        "active_parameters": active,
        "active_parameters_without_input_embedding": active - table if active else None,
        "parameters_missing": model.moe_level_only or None,
        "stated_total_parameters": model.total_parameters or None,
        "stated_active_parameters": model.active_parameters or None,
        "num_moe_layers": model.num_moe_layers,
        "layers_with_experts": model.moe_layers_among(model.num_layers),
        "num_windowed_layers": len(windowed),
        "weights_bytes": weights,
        "kv_cache_bytes_per_token": cached * model.num_layers if whole else None,
        "kv_cache_bytes_per_token_beyond_window": (
            cached * (model.num_layers - len(windowed)) if whole else None
        ),
        "warnings": [caveat.sentence for caveat in model_caveats(model)],
    }


def _table(model: ModelSpec, found: dict[str, Any]) -> str:
    """A description for people: one line for each thing that is not at its usual value."""
    derived = {
        "parameters": counts_text(model),
        "layers": _layers_text(model),
        "weights": f"{text(found['weights_bytes'], 'size')}: experts {model.expert_weights}, "
        f"others {model.other_weights}",
        "KV cache": f"{text(found['kv_cache_bytes_per_token'], 'size')} a token in bfloat16",
    }
    if found["num_windowed_layers"]:
        beyond = text(found["kv_cache_bytes_per_token_beyond_window"], "size")
        derived["KV cache"] += f"; {beyond} beyond the window"
    skipped = {"name", "warnings", "layers_with_experts", "note", "moe_layers"}
    skipped |= {"expert_weights", "other_weights", "not_understood"}
    skipped |= {key for key in found if "bytes" in key or "parameters" in key}
    plain = {key: value for key, value in found.items() if key not in skipped}
    rows = [*derived.items(), *_lines(plain)]
    if model.note:
        rows.append(("note", model.note))
    unknown = ", ".join(model.not_understood) or "nothing"
    rows.append(("not understood", unknown))
    lines = [model.name, text_table(["", ""], [list(row) for row in rows], left=(0, 1)).lstrip()]
    return "\n".join([*lines, *(f"⚠ {sentence}" for sentence in found["warnings"])])


def _lines(table: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Keys and values of a description, tables within it by their dotted names."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _lines(value, f"{prefix}{key}.")
        elif value not in (None, "", 0, False, [], ()):
            shown = ", ".join(map(str, value)) if isinstance(value, list) else value
            yield f"{prefix}{key}", f"{shown:g}" if isinstance(shown, float) else str(shown)


def _layers_text(model: ModelSpec) -> str:
    """Layers in words: "61, of which 58 with experts"."""
    windowed = len(model.attention.windowed_among(model.num_layers))
    words = f"{model.num_layers}, of which {model.num_moe_layers} with experts"
    return words + f" and {windowed} with a window of {model.attention.window}" * bool(windowed)


def list_models(as_json: bool) -> str:
    """The shipped models: name, counts, sizes and source."""
    models = [load_model(name) for name in model_names()]
    if as_json:
        return document(models=[_row(model) for model in models])
    rows = [
        [
            model.name,
            text(row["total_parameters"], "count"),
            text(row["active_parameters"], "count"),
            f"{model.num_moe_layers} of {model.num_layers}",
            f"{model.top_k} of {model.num_experts}",
            f"{model.hidden_size} x {model.intermediate_size}",
            model.attention.kind + ", MoE layer only" * bool(model.moe_level_only),
        ]
        for model, row in ((model, _row(model)) for model in models)
    ]
    titles = ["model", "total", "active", "MoE layers", "experts", "expert", "attention"]
    return "\n".join([
        text_table(titles, rows, left=(0, 6)),
        "",
        "--model also takes a TOML, a Hugging Face config.json or its folder; --describe has "
        "everything of one",
    ])  # fmt: skip


def _row(model: ModelSpec) -> dict[str, Any]:
    found = description(model)
    keys = ("name", "total_parameters", "active_parameters", "num_layers", "num_moe_layers")
    more = ("num_experts", "top_k", "hidden_size", "intermediate_size", "moe_level_only", "source")
    return {key: found[key] for key in (*keys, *more)}


def list_hardware(as_json: bool) -> str:
    """The shipped machines: name, title, rates and source."""
    machines = [load_hardware(name) for name in hardware_names()]
    if as_json:
        return document(hardware=[encode(machine) for machine in machines])
    rows = [
        [
            machine.name,
            text(machine.peak.get("bfloat16"), "rate"),
            text(machine.memory_bandwidth, "bandwidth"),
            text(machine.memory_capacity, "size"),
            machine.title,
        ]
        for machine in machines
    ]
    titles = ["hardware", "bfloat16", "memory", "capacity", "title"]
    return "\n".join([
        text_table(titles, rows, left=(0, 4)),
        "",
        "--hardware also takes a TOML of the same fields; --json has sources",
    ])  # fmt: skip
