"""A deployment in words: the step, its layers, weights and windows, and how experts are shared."""

from collections.abc import Sequence

from moebench.predict.serving.deployment import Deployment

LEVEL_TITLES = {
    "moe": "one MoE layer",
    "decoder": "one decoder layer",
    "model": "whole model, composed",
}


def asked(deployments: Sequence[Deployment]) -> str:
    """Phase, level and ranks of deployments in words; layers and weights where all are alike."""
    d = deployments[0]
    context = {
        "decode": f"against {d.context} cached tokens a sequence",
        "prefill": f"of {d.context} tokens a sequence",
        "train": f"of {d.context} tokens a sequence, forward and backward, without the optimizer",
    }[d.phase]
    if d.phase == "decode" and d.level == "moe":
        context = "of one token a sequence"
    sizes = {"tp": d.tensor_parallel, "ep": d.expert_parallel}
    ranks = [f"{name} {size}" for name, size in sizes.items() if size > 1]
    devices = f"{d.num_devices} devices ({', '.join(ranks)})" if ranks else "1 device"
    layers, weights = ({*map(words, deployments)} for words in (layers_of, weights_of))
    level = LEVEL_TITLES[d.level] + (
        f" ({layers_of(d)})" if layers == {layers_of(d)} != {""} else ""
    )
    types = f", {weights_of(d)}" if len(weights) == 1 else ""
    step = f"{d.phase} {context}, {level}{types}, {devices}"
    return f"{step}, {traffic(d)}" if traffic(d) else step


def traffic(deployment: Deployment) -> str:
    """How experts are shared, in words; nothing for uniform routing."""
    d = deployment
    return d.traffic or f"experts by a power law of exponent {d.skew:g}" * (d.skew > 0)


def layers_of(deployment: Deployment) -> str:
    """Kinds of layers in words, where there is more than one layer or kind."""
    d = deployment
    if d.level == "model":
        dense = f", {d.dense_layers} of them dense" * bool(d.dense_layers)
        return f"{d.moe_layers + d.dense_layers} layers{dense}"
    is_mixed = d.level == "decoder" and d.model.num_moe_layers < d.model.num_layers
    return "with experts" * is_mixed


def own_words(deployments: Sequence[Deployment]) -> list[str]:
    """Layers and weights of each deployment, where they are not all the same."""
    kinds = [words for words in (layers_of, weights_of) if len({*map(words, deployments)}) > 1]
    return ["".join(f"{own}; " for words in kinds if (own := words(d))) for d in deployments]


def weights_of(deployment: Deployment) -> str:
    """Types of weights and cache in words."""
    d = deployment
    types = f"{d.expert_weights} weights"
    if d.expert_weights != d.other_weights:
        types = f"{d.expert_weights} experts, {d.other_weights} elsewhere"
    return types + f", {d.cache_dtype} KV cache" * (d.cache_dtype != "bfloat16")


def windows(deployment: Deployment) -> list[str]:
    """Line on layers that look back less than the context, and on what a decoder layer is then."""
    d, layers = deployment, deployment.moe_layers + deployment.dense_layers
    if not d.windowed_layers or d.context < d.model.attention.window:
        return []
    some = f"{d.windowed_layers:.0f} of {layers} layers"
    if d.level == "decoder":
        share = f"{100 * d.windowed_layers:.0f} %"
        some = f"the layer is the mean of the model's MoE layers, of which {share}"
    return [
        f"{d.model.name}: {some} look back {d.model.attention.window} tokens and cache no more, as "
        "vllm's hybrid cache manager has it; without it each caches the whole context"
    ]
