"""What to know of a model before its prices are read: its counts, and what they leave out."""

from moebench.records.results import Caveat
from moebench.spec.model import ModelSpec
from moebench.spec.parameters import parameters
from moebench.spec.stated import stated_differences
from moebench.units import text


def counts(model: ModelSpec) -> tuple[float | None, float | None]:
    """Total and active parameters; None where the network is described in part."""
    if model.moe_level_only:
        return None, None
    return parameters(model), parameters(model, model.mean_top_k or model.top_k)


def counts_text(model: ModelSpec) -> str:
    """Total and active parameters in words: "46.7 B parameters, 12.9 B active"."""
    total, active = counts(model)
    if total is None:
        part = "MoE layer" if model.num_experts else "name"
        return f"{part} only: {model.moe_level_only}"
    words = f"{text(total, 'count')} parameters"
    return f"{words}, {text(active, 'count')} active" if model.num_experts else words


def model_caveats(model: ModelSpec) -> tuple[Caveat, ...]:
    """Caveats on stated counts that differ, and on config keys that were left out."""
    found = [
        Caveat(
            kind="stated-parameters",
            seen=sentence,
            meaning="a size of the description, or the stated count, is wrong",
            remedy="compare --describe with the model's card",
        )
        for sentence in stated_differences(model)
    ]
    if model.not_understood:
        found.append(
            Caveat(
                kind="not-understood",
                seen=f"{model.name}: config keys left out: {', '.join(model.not_understood)}",
                meaning="they may change the network, and prices are without them",
                remedy="describe the network in a TOML if they matter",
            )
        )
    return tuple(found)
