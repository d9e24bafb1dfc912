"""Which layers have experts, and which attend in full, by the many ways that configs say it."""

from collections.abc import Sequence
from typing import Any

from moebench.spec.huggingface.reading import ConfigReading
from moebench.spec.schema import MOST

FULL = ("full_attention", "attention", "global_attention", "global", "full")
WINDOWED = ("sliding_attention", "chunked_attention", "local_attention", "local")
PATTERN_KEYS = (
    *("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index", "moe_layer_end_index"),
    *("decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_interval", "moe_layer_freq"),
    *("expert_layer_period", "expert_layer_offset", "mlp_only_layers"),
)
"""Keys that a list of layers outranks, where a config has both."""


def read_layers(reading: ConfigReading) -> list[str]:
    """Read the pattern of experts and that of windows; returns what is not understood."""
    layers = reading.found.get("num_layers")
    if not layers:
        if not (pattern := _mixers(reading)):
            return []
        layers = reading.found["num_layers"] = len(pattern)
    if not 0 < layers <= MOST["num_layers"]:
        return []  # which the network refuses
    if "num_experts" in reading.found:
        _read_moe_layers(reading, layers)
    return _read_windows(reading, layers)


def _read_moe_layers(reading: ConfigReading, layers: int) -> None:
    """Leading dense layers and a step, or else the list of layers with experts."""
    with_experts = _moe_layers(reading, layers)
    if not with_experts:
        pattern: dict[str, Any] = {"num_dense_layers": layers}
    else:
        first, second = (*with_experts, layers)[:2]
        step = second - first if len(with_experts) > 1 else first + 1
        leading = max(0, first - step + 1)
        if with_experts == [*range(leading, layers)][step - 1 :: step]:
            pattern = {"num_dense_layers": leading, "moe_layer_step": step}
        else:
            pattern = {"moe_layers": tuple(with_experts)}
    reading.found |= {key: value for key, value in pattern.items() if value not in (0,)}


def _moe_layers(reading: ConfigReading, layers: int) -> list[int]:
    """The layers with experts, from 0."""

    def number(*keys: str) -> int | None:
        values = [reading.known(key, int) for key in keys]
        return next((value for value in values if value is not None), None)

    reading.used.update(PATTERN_KEYS)
    mixers = _mixers(reading)
    if any(kind in ("E", "moe") for kind in mixers):
        return [i for i, kind in enumerate(mixers[:layers]) if kind in ("E", "moe")]
    if types := reading.known("mlp_layer_types", list):
        _check_length(reading, "mlp_layer_types", types, layers)
        return [i for i, kind in enumerate(types[:layers]) if kind in ("sparse", "moe")]
    if listed := reading.known("moe_layers", list):
        return [reading.check("moe_layers", layer, int) or 0 for layer in listed]
    frequency = reading.known("moe_layer_freq")
    if isinstance(frequency, list):
        _check_length(reading, "moe_layer_freq", frequency, layers)
        return [i for i, has_experts in enumerate(frequency[:layers]) if has_experts]
    first = number("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index") or 0
    last = number("moe_layer_end_index")
    last = layers - 1 if last is None or last < 0 else last
    step = number("decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_interval") or 1
    every = reading.check("moe_layer_freq", frequency, int) or 1
    period, offset = number("expert_layer_period") or 1, number("expert_layer_offset") or 0
    dense = reading.known("mlp_only_layers", list) or ()
    return [
        i
        for i in range(first, min(last + 1, layers))
        if (i + 1) % step == 0 and i % every == 0 and i % period == offset % period
        and i not in dense
    ]  # fmt: skip


def _mixers(reading: ConfigReading) -> Sequence[Any]:
    """Nemotron-H's list of layers, each of which is one mixer: Mamba, attention, experts."""
    letters = reading.known("hybrid_override_pattern", str)
    return letters or reading.known("layers_block_type", list) or ()


def _read_windows(reading: ConfigReading, layers: int) -> list[str]:
    """The layers whose attention looks back a window only."""
    found, r = reading.found, reading
    types = r.known("layer_types", list)
    if types:
        _check_length(r, "layer_types", types, layers)
        types = types[:layers]
        strange = sorted({str(t) for t in types if t not in (*FULL, *WINDOWED)})
        if strange:
            return [kind.replace("_", " ") + " layers" for kind in strange]
    if r.known("use_sliding_window", bool) is False:
        found.pop("attention.window", None)
    if not found.get("attention.window"):
        found.pop("attention.full_attention_step", None)
        return []
    if types:
        windowed = [i for i, kind in enumerate(types) if kind in WINDOWED]
    elif r.family.knows("max_window_layers"):
        windowed = [*range(r.value("max_window_layers", int) or 0, layers)]
    elif pattern := r.family.windows:
        full = [layer % layers for layer in r.family.full_layers]
        windowed = [i for i in range(layers) if pattern[i % len(pattern)] == "S" and i not in full]
    else:
        step = found.get("attention.full_attention_step", 0)
        windowed = [i for i in range(layers) if not step or (i + 1) % step]
    found.pop("attention.full_attention_step", None)
    if not windowed:
        del found["attention.window"]
        return []
    step = next((i + 1 for i in range(layers) if i not in windowed), 0)
    if windowed != [i for i in range(layers) if not step or (i + 1) % step]:
        found["attention.windowed_layers"] = tuple(windowed)
    elif step:
        found["attention.full_attention_step"] = step
    return []


def _check_length(reading: ConfigReading, key: str, types: Sequence[Any], layers: int) -> None:
    """Refuse a list that has fewer entries than the network has layers."""
    if len(types) < layers:
        count = f"found {len(types)} entries, expected one of each of the {layers} layers"
        raise ValueError(f"{reading.where}: {key}: {count}")
