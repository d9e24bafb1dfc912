"""A deployment in words: the step, its layers, weights and windows, and how experts are shared."""

from collections.abc import Sequence

from moebench.predict.serving.choices import exchange_of
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
        "prefill": f"of {d.context} tokens a sequence"
        + f", {d.cached_prefix} of them cached" * bool(d.cached_prefix),
        "train": f"of {d.context} tokens a sequence, forward and backward"
        + f", {d.training.recompute} recomputation" * (d.training.recompute != "none")
        + _optimizer(d),
    }[d.phase]
    if d.phase == "decode" and d.level == "moe":
        context = "of one token a sequence"
    if d.draft is not None:
        context += (
            f", {d.draft.tokens} drafted tokens verified with it ({d.tokens_per_step:.2f} tokens a "
            "step are kept)"
        )
    layers, weights = ({*map(words, deployments)} for words in (layers_of, weights_of))
    level = LEVEL_TITLES[d.level] + (
        f" ({layers_of(d)})" if layers == {layers_of(d)} != {""} else ""
    )
    types = f", {weights_of(d)}" if len(weights) == 1 else ""
    step = f"{d.phase} {context}, {level}{types}, {devices_of(d)}"
    return f"{step}, {traffic(d)}" if traffic(d) else step


def _optimizer(deployment: Deployment) -> str:
    """The optimizer's share of a training step, in words."""
    if deployment.level != "model":
        return ", without the optimizer"
    batches = deployment.training.micro_batches
    return (
        f", with a step of the optimizer for {batches or 'so many batches as hold 4M tokens'}"
        + (" batches" * bool(batches))
    )


def devices_of(deployment: Deployment) -> str:
    """GPUs and how they share the work, in words."""
    d, p = deployment, deployment.parallel
    if d.num_devices == 1:
        return "1 device"
    sizes = {"tp": p.tensor_parallel, "ep": p.expert_parallel, "pp": p.pipeline_parallel}
    parts = [f"{name} {size}" for name, size in sizes.items() if size > 1]
    if p.gpus is not None and p.replicas > 1:
        parts.append(f"attention data-parallel over {p.replicas}")
    if p.gpus is not None and p.replicas == 1 < p.expert_parallel:
        parts.append("experts over the same GPUs")
    parts += [f"{p.nodes} nodes"] * ((p.nodes or 1) > 1)
    parts += [f"{p.redundant_experts} redundant experts"] * (p.redundant_experts > 0)
    if exchange := exchange_of(d):
        parts.append(f"exchange {exchange}")
        parts += [f"{p.chunks} chunks"] * (p.chunks > 1) + ["two batches"] * p.has_two_batches
    return f"{d.num_devices} devices ({', '.join(parts)})"


def traffic(deployment: Deployment) -> str:
    """How experts are shared, in words; nothing for uniform routing."""
    d = deployment
    return d.traffic or f"experts by a power law of exponent {d.skew:g}" * (d.skew > 0)


def layers_of(deployment: Deployment) -> str:
    """Kinds of layers in words, where there is more than one layer or kind."""
    d = deployment
    if d.level == "model":
        dense = f", {d.dense_layers} of them dense" * bool(d.dense_layers and d.moe_layers)
        return f"{d.layers} layers{dense}"
    is_mixed = d.level == "decoder" and 0 < d.model.num_moe_layers < d.model.num_layers
    return "with experts" * is_mixed


def own_words(deployments: Sequence[Deployment]) -> list[str]:
    """Layers and weights of each deployment, where they are not all the same."""
    kinds = [words for words in (layers_of, weights_of) if len({*map(words, deployments)}) > 1]
    return ["".join(f"{own}; " for words in kinds if (own := words(d))) for d in deployments]


def weights_of(deployment: Deployment) -> str:
    """Types of weights and cache in words."""
    d = deployment
    types = f"{d.expert_weights} weights"
    if d.is_dense:
        types = f"{d.other_weights} weights"
    elif d.expert_weights != d.other_weights:
        types = f"{d.expert_weights} experts, {d.other_weights} elsewhere"
    return types + f", {d.cache_dtype} KV cache" * (d.cache_dtype != "bfloat16")


def windows(deployment: Deployment) -> list[str]:
    """Line on layers that look back less than the context, and on what a decoder layer is then."""
    d, layers = deployment, deployment.layers
    if not d.windowed_layers or d.context < d.model.attention.window:
        return []
    some = f"{d.windowed_layers:.0f} of {layers} layers"
    if d.level == "decoder":
        share = f"{100 * d.windowed_layers:.0f} %"
        kind = "layers" if d.is_dense else "MoE layers"
        some = f"the layer is the mean of the model's {kind}, of which {share}"
    return [
        f"{d.model.name}: {some} look back {d.model.attention.window} tokens and cache no more, as "
        "vllm's hybrid cache manager has it; without it each caches the whole context"
    ]
