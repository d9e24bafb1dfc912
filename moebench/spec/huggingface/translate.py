"""A Hugging Face config.json as a ModelSpec: what it says, and what its family takes for granted.

Facts on families are those of transformers 5.23.0, read in its code; nothing of it is imported.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moebench.spec.attention import Attention
from moebench.spec.gate import Gate
from moebench.spec.huggingface.attention import read_attention
from moebench.spec.huggingface.families import Family, families_by_name, family, family_names
from moebench.spec.huggingface.files import model_type, read_config, text_part
from moebench.spec.huggingface.keys import ACTIVATION_KEYS, ACTIVATIONS, KEYS
from moebench.spec.huggingface.layers import read_layers
from moebench.spec.huggingface.quantisation import read_weight_types
from moebench.spec.huggingface.reading import ConfigReading
from moebench.spec.model import ModelSpec

EXPERT_FIELDS = ("num_experts", "top_k", "intermediate_size")


def load_config(name: str) -> ModelSpec:
    """The network of a config.json or of the folder that holds one.

    Raises:
        ValueError: the file is no config, its family is unknown, or a value cannot be.
    """
    path, config = read_config(name)
    text, names = text_part(config)
    if names and "model_type" not in text:
        implied = f"{model_type(path, config)}_text"
        text = {**text, "model_type": implied if implied in family_names() else None}
    found = model_type(path, text, names)
    where = ": ".join([str(path), *[".".join(names)] * bool(names)])
    around = {key: value for key, value in config.items() if names and key in _SHARED}
    return translate({**around, **text}, family_of(found, text, where), where, _name_of(path))


_SHARED = ("quantization_config", "torch_dtype", "dtype", "tie_word_embeddings")
"""Keys that a multimodal config may have outside the table of its language model."""


def family_of(name: str, config: Mapping[str, Any], where: str) -> Family:
    """The family of a `model_type`; one known by name only is priced at level "moe" alone."""
    if name in family_names():
        return family(name)
    kind = families_by_name().get(name)
    has_experts = all(any(key in config for key in KEYS[field]) for field in EXPERT_FIELDS[:2])
    miss = "" if kind else _near_miss(name)
    if kind is None and not has_experts:
        raise ValueError(
            f"{where}: model_type: found {name!r}, which is no known family{miss}; "
            "docs/models.md lists them; a TOML can describe it"
        )
    has_width = any(key in config for key in KEYS["intermediate_size"])
    return Family(
        name=name,
        keys={} if kind or has_width else {"intermediate_size": "intermediate_size"},
        source="its name, of transformers 5.23.0" if kind else "its own keys",
        moe_level_only=kind or f"the unknown family {name!r}{miss}",
    )


def _near_miss(name: str) -> str:
    """The known family whose name differs by a letter or two, as the end of a message."""
    import difflib  # only errors need it

    known = (*family_names(), *families_by_name())
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    return f"; did you mean {close[0]!r}?" if close else ""


def translate(config: Mapping[str, Any], family: Family, where: str, name: str) -> ModelSpec:
    """The network that the keys of a config describe as its family's."""
    reading = ConfigReading(config, family, where)
    for field in dict.fromkeys((*family.facts, *family.keys, *KEYS)):
        reading.read(field)
    _read_experts(reading)
    _read_activation(reading)
    _read_widths(reading)
    reasons = [
        family.moe_level_only,
        *read_layers(reading),
        *read_attention(reading),
    ]
    read_weight_types(reading)
    for key, fields in family.switches.items():
        if reading.value(key, bool):
            for what in fields.get("not_described", ()):
                reading.leave_undescribed(what)
            reading.found |= {k: v for k, v in fields.items() if k != "not_described"}
    sizes = ("num_layers", "hidden_size", "vocab_size", "attention.num_heads")
    if not family.defaults and any(reading.found.get(size) is None for size in sizes):
        raise ValueError(
            f"{where}: model_type: found {family.name!r} ({family.moe_level_only}), and no sizes "
            "of a network that decodes text; docs/models.md lists what is read"
        )
    reading.require(*sizes)
    found = reading.found
    attention = {"num_kv_heads": found["attention.num_heads"], **_part(found, "attention.")}
    gate = _part(found, "gate.")
    plain: dict[str, Any] = {key: value for key, value in found.items() if "." not in key}
    try:
        if "num_experts" in plain:
            plain["gate"] = Gate(**gate)
        return ModelSpec(
            name=name,
            source=f"{where}; {family.name} of {family.source}",
            attention=Attention(**attention),
            moe_level_only=", ".join(dict.fromkeys(filter(None, reasons))),
            not_understood=reading.not_understood(),
            note=family.note,
            **plain,
        )
    except ValueError as error:
        field, colon, rest = str(error).partition(":")
        keys = {name.rpartition(".")[2]: key for name, key in reading.key_of.items()}
        raise ValueError(f"{where}: {keys.get(field, field)}{colon}{rest}") from error


def _part(found: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The fields of one table of the network."""
    return {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}


def _read_experts(reading: ConfigReading) -> None:
    """Experts' sizes and the gate; a config with none of them is a dense network's."""
    found, r = reading.found, reading
    if not found.get("num_experts"):
        for field in [f for f in found if f in EXPERT_FIELDS or f.startswith("gate.")]:
            del found[field]
        return
    r.require(*EXPERT_FIELDS)
    found.setdefault("gate.score", "softmax")
    found.setdefault("gate.renormalise", False)
    if r.known("topk_method", str) == "greedy" or not found.get("gate.num_groups"):
        found.pop("gate.num_groups", None)
        found.pop("gate.top_k_groups", None)
    elif not found.get("gate.top_k_groups"):
        r.require("gate.top_k_groups")
    _read_shared(r)


def _read_shared(reading: ConfigReading) -> None:
    """Width of the shared experts: a key of its own, or so many times an expert's."""
    found, r = reading.found, reading
    if "shared_intermediate_size" in found:
        return
    for key in ("shared_expert_intermediate_size", "shared_intermediate_size"):
        if (width := r.known(key, int)) is not None:
            found["shared_intermediate_size"] = width
            return
    for key in ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"):
        if count := r.known(key, int):
            found["shared_intermediate_size"] = count * found["intermediate_size"]


def _read_widths(reading: ConfigReading) -> None:
    """What follows from the hidden size, and Cohere's factor on the logits."""
    found, r = reading.found, reading
    hidden = found.get("hidden_size") or 0
    if hidden < 1:
        return
    if r.family.expansion:
        found.setdefault("dense_intermediate_size", r.family.expansion * hidden)
    if r.family.scales_embeddings or r.known("mup_enabled", bool):
        found["embedding_multiplier"] = hidden**0.5
    if scale := r.known("logit_scale", float):
        found["logit_divisor"] = 1 / scale


def _read_activation(reading: ConfigReading) -> None:
    """The activation of experts and dense networks."""
    if "activation" in reading.found:
        return
    for key in filter(reading.knows, ACTIVATION_KEYS):
        named = reading.value(key, str)
        if named in ACTIVATIONS:
            reading.found["activation"] = ACTIVATIONS[named]
        elif named is not None:
            reading.left.append(key)


def _name_of(path: Path) -> str:
    """Name of a model by where its config lies: the folder, or the repository of a cache."""
    if path.name != "config.json":
        return path.stem
    folder = path.resolve().parent
    if folder.parent.name == "snapshots":
        return folder.parents[1].name.rpartition("--")[2]
    return folder.name
