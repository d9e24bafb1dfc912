"""Attention of a config: heads, the rotary embedding, and how its frequencies are stretched."""

from collections.abc import Mapping
from typing import Any

from moebench.spec.attention import RopeScaling
from moebench.spec.huggingface.reading import ConfigReading

KINDS = {"su": "longrope", "dynamic": "dynamic", "mrope": "default", "proportional": "default"}
"""Names of methods that mean another one, for text."""
SCALING_KEYS = {
    "factor": "factor",
    "original_max_position_embeddings": "original_context",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "mscale": "mscale",
    "mscale_all_dim": "mscale_all_dim",
    "attention_factor": "attention_factor",
    "low_freq_factor": "low_frequency_factor",
    "high_freq_factor": "high_frequency_factor",
}
ROPE_KEYS = ("rope_parameters", "rope_scaling")
"""Keys of the same table, in transformers 5 and before it."""


def read_attention(reading: ConfigReading) -> list[str]:
    """Read heads and the rotary embedding; returns what is not understood."""
    found, r = reading.found, reading
    heads, hidden = found.get("attention.num_heads"), found.get("hidden_size")
    if r.family.moe_level_only and not (heads and hidden):
        found.setdefault("attention.num_heads", 1)
        heads = 1
    mla = ("attention.kv_rank", "attention.rope_head_dim", "attention.value_head_dim")
    found.setdefault("attention.kind", "mla" if found.get(mla[0]) else "gqa")
    if found["attention.kind"] == "mla":
        found["attention.head_dim"] = r.known("qk_nope_head_dim", int) or found.get(
            "attention.head_dim"
        )
        r.used.update(("qk_nope_head_dim", "head_dim", "qk_head_dim"))
        if heads and hidden and r.family.knows("v_head_dim"):
            found.setdefault(mla[2], hidden // heads)
    else:
        for name in ("attention.query_rank", *mla[:2]):
            found.pop(name, None)
    if not found.get("attention.head_dim"):
        found["attention.head_dim"] = max(1, hidden // heads) if heads and hidden else 1
    if r.known("multi_query", bool) and not r.known("new_decoder_architecture", bool):
        found["attention.num_kv_heads"] = 1
    scalar = r.known("query_pre_attn_scalar", float)
    if scalar is not None and scalar <= 0:
        expected = "expected more than 0"
        raise ValueError(f"{r.where}: query_pre_attn_scalar: found {scalar:g}, {expected}")
    if scalar and scalar != found["attention.head_dim"]:
        found["attention.softmax_scale"] = scalar**-0.5
    _read_rope(r)
    bases = {*map(str, r.known("layer_rope_theta", list) or ())}
    if len(bases) > 1:
        r.leave_undescribed("another rotary embedding in some layers")
    by_layer = r.known("num_attention_heads_per_layer", list) or ()
    return ["attention heads that differ between layers"] * (len({*map(str, by_layer)}) > 1)


def _read_rope(reading: ConfigReading) -> None:
    """The base of the rotary embedding, the part of a head that rotates, and the scaling."""
    found, r = reading.found, reading
    parameters = _parameters(r)
    key = "rope_parameters" if "rope_parameters" in r.config else "rope_scaling"
    theta = r.check(f"{key}.rope_theta", parameters.get("rope_theta"), float)
    if theta is not None:
        found["attention.rope_theta"] = theta
    shares = [parameters.get("partial_rotary_factor")]
    shares += [r.known(name, float) for name in ("partial_rotary_factor", "rotary_pct")]
    share = next((value for value in shares if value is not None), None)
    if found["attention.kind"] == "gqa" and share not in (None, 1, 1.0):
        share = r.check("partial_rotary_factor", share, float)
        if not 0 < share <= 1:
            raise ValueError(f"{r.where}: partial_rotary_factor: found {share:g}, expected 0 to 1")
        found["attention.rotary_dim"] = int(found["attention.head_dim"] * share)
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    kind = KINDS.get(kind, kind)
    alpha = r.check(f"{key}.alpha", parameters.get("alpha"), float)
    if kind == "dynamic" and alpha:  # Hunyuan: a fixed factor on the base, whatever the length
        dim = found.get("attention.rotary_dim") or found["attention.head_dim"]
        base = found.get("attention.rope_theta", 10000.0)
        found["attention.rope_theta"] = base * alpha ** (dim / max(1, dim - 2))
        return
    if kind in ("default", None):
        return
    if kind not in ("linear", "dynamic", "yarn", "llama3", "longrope"):
        r.left.append(key)
        return
    scaling: dict[str, Any] = {"kind": kind}
    for name, field in SCALING_KEYS.items():
        value = r.check(f"{key}.{name}", parameters.get(name), float)
        if value is not None:
            scaling[field] = int(value) if field == "original_context" else value
    original = r.config.get("original_max_position_embeddings")
    if kind in ("yarn", "longrope", "llama3") and "original_context" not in scaling:
        most = original or r.config.get("max_position_embeddings") or 0
        scaling["original_context"] = r.check("max_position_embeddings", most, int)
    if parameters.get("truncate") is False:
        scaling["truncates"] = False
    if kind == "longrope":
        r.left.append(key)  # its factors of each dimension
    try:
        found["attention.rope_scaling"] = RopeScaling(**scaling)
    except ValueError as error:
        raise ValueError(f"{r.where}: {key}: {error}") from error


def _parameters(reading: ConfigReading) -> Mapping[str, Any]:
    """The table of the rotary embedding, of the layers that attend in full where they differ."""
    r = reading
    found = [r.check(key, r.config.get(key), dict) for key in ROPE_KEYS]
    r.used.update(ROPE_KEYS)
    for table in (*found, r.family.defaults.get("rope_parameters")):
        if not table:
            continue
        by_layer = {name: part for name, part in table.items() if isinstance(part, Mapping)}
        if by_layer:
            full = by_layer.get("full_attention") or next(iter(by_layer.values()))
            if "attention.window" in r.found and any(part != full for part in by_layer.values()):
                r.leave_undescribed("another rotary embedding in windowed layers")
            return full
        return dict(table)
    return {}
