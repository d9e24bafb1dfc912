"""Types of a checkpoint's weights: `dtype`, and `quantization_config` of the usual methods."""

from collections.abc import Mapping
from typing import Any

from moebench.spec.huggingface.reading import ConfigReading
from moebench.spec.weight_types import WEIGHT_TYPES

BY_METHOD = {"fp8": "float8", "fbgemm_fp8": "float8", "mxfp4": "mxfp4", "awq": "int4"}
BY_BITS = {("int", 4): "int4", ("int", 8): "int8", ("float", 8): "float8", ("float", 4): "nvfp4"}
BY_ALGORITHM = {"nvfp4": "nvfp4", "mxfp4": "mxfp4", "fp8": "float8", "w4a16": "int4"}
BY_ALGORITHM |= {"int8": "int8", "int4": "int4"}
ATTENTION = ("attn", "attention")


def read_weight_types(reading: ConfigReading) -> None:
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


def _read_quantised(reading: ConfigReading, key: str, table: Mapping[str, Any]) -> None:
    """The types that a quantisation gives; one that nobody knows stays not understood."""
    kept = [
        str(name)
        for part in ("modules_to_not_convert", "ignore", "exclude_modules", "ignored_layers")
        for name in (reading.check(f"{key}.{part}", table.get(part), list) or ())
    ]
    keeps_attention = any(word in name for name in kept for word in ATTENTION)
    for kind, targets in _types_of(table):
        if kind is None:
            reading.left.append(key)
            return
        if "attn" not in targets:
            reading.found["expert_weights"] = kind
        if "expert" not in targets and kind != "mxfp4" and not keeps_attention:
            reading.found["other_weights"] = kind


def _types_of(table: Mapping[str, Any]) -> list[tuple[str | None, str]]:
    """The weight types of a `quantization_config`, each with the names of what it is for."""
    groups = table.get("config_groups")
    found = [
        (_type_of_group(group), str(group.get("targets", "")))
        for group in (groups.values() if isinstance(groups, Mapping) else ())
        if isinstance(group, Mapping) and isinstance(group.get("weights"), Mapping)
    ]
    return found or [(_type_of(table), "")]


def _type_of_group(group: Mapping[str, Any]) -> str | None:
    """The weight type of one group of compressed-tensors."""
    weights = group["weights"]
    kind = BY_BITS.get((str(weights.get("type", "int")), weights.get("num_bits", 0)))
    return "mxfp4" if kind == "nvfp4" and weights.get("group_size") == 32 else kind


def _type_of(table: Mapping[str, Any]) -> str | None:
    """The weight type of a `quantization_config` that has one for all."""
    method = str(table.get("quant_method", "")).lower().replace("-", "_")
    if method == "gptq" or (method == "awq" and table.get("bits")):
        return BY_BITS.get(("int", table.get("bits", 4)))
    if method in BY_METHOD:
        return BY_METHOD[method]
    if method == "bitsandbytes":
        return "int8" if table.get("load_in_8bit") else "int4"
    algorithm = str(table.get("quant_algo", "")).lower()
    for name, kind in BY_ALGORITHM.items():
        if name in algorithm or name in str(table.get("format", "")):
            return kind
    return None
