"""Types of a checkpoint's weights: `dtype`, and `quantization_config` of the usual methods."""

from collections.abc import Mapping
from typing import Any

from moebench.spec.huggingface.reading import Reading
from moebench.spec.weight_types import WEIGHT_TYPES

BY_METHOD = {"fp8": "float8", "fbgemm_fp8": "float8", "mxfp4": "mxfp4", "awq": "int4"}
BY_BITS = {("int", 4): "int4", ("int", 8): "int8", ("float", 8): "float8", ("float", 4): "nvfp4"}
ATTENTION = ("attn", "attention")


def read_weight_types(reading: Reading) -> None:
    """Read the types of the experts' weights and of all others."""
    r = reading
    for key in ("dtype", "torch_dtype"):
        named = r.config.get(key)
        if isinstance(named, str) and named.removeprefix("torch.") in WEIGHT_TYPES:
            plain = named.removeprefix("torch.")
            r.found |= {"expert_weights": plain, "other_weights": plain}
            break
    for key in ("quantization_config", "compression_config"):
        table = r.value(key, dict)
        if table:
            _read_quantised(r, key, table)


def _read_quantised(reading: Reading, key: str, table: Mapping[str, Any]) -> None:
    """The type that a quantisation gives; one that nobody knows stays not understood."""
    kind = _type_of(table)
    if kind is None:
        reading.left.append(key)
        return
    reading.found["expert_weights"] = kind
    kept = [
        name
        for part in ("modules_to_not_convert", "ignore", "exclude_modules", "ignored_layers")
        for name in (reading.check(f"{key}.{part}", table.get(part), list) or ())
    ]
    keeps_attention = any(word in str(name) for name in kept for word in ATTENTION)
    if kind != "mxfp4" and not keeps_attention:
        reading.found["other_weights"] = kind


def _type_of(table: Mapping[str, Any]) -> str | None:
    """The weight type of a `quantization_config`."""
    method = str(table.get("quant_method", "")).lower().replace("-", "_")
    if method == "gptq" or (method == "awq" and table.get("bits")):
        return BY_BITS.get(("int", table.get("bits", table.get("w_bit", 4))))
    if method in BY_METHOD:
        return BY_METHOD[method]
    if method == "bitsandbytes":
        return "int8" if table.get("load_in_8bit") else "int4"
    algorithm = str(table.get("quant_algo", "")).lower()
    for name in ("nvfp4", "mxfp4", "fp8", "w4a16", "int8", "int4"):
        if name in algorithm or name in str(table.get("format", "")):
            return {"fp8": "float8", "w4a16": "int4"}.get(name, name)
    groups = table.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if isinstance(weights, Mapping):
            return BY_BITS.get((weights.get("type", "int"), weights.get("num_bits", 0)))
    return None
