"""Check of a claim by counted FLOPs, from the shapes of the model alone.

Counted: attention, router, routed and shared experts, dense layers and LM head, 2 FLOPs a
multiply-add. Not counted: the embedding look-up. Attention scores count in full, masked half
included, as in the counters that papers use.
"""

from dataclasses import dataclass

from moebench.experts.catalogue import EXPERT_BACKENDS
from moebench.predict.claims.papers import Claim, Paper, Rounded
from moebench.routers.policy import Policy, policy
from moebench.spec.attention import Attention
from moebench.spec.case import OperatingPoint, Workload
from moebench.spec.gate import Gate
from moebench.spec.layer import attention_ops, dense_ffn_ops, head_ops, layer_ops, query_width
from moebench.spec.model import ModelSpec, load_model
from moebench.spec.ops import total_flops
from moebench.units import Flops

SHORTEST, LONGEST = 1, 2048
"""Range of a sample's tokens where the paper states none: one token to a long question."""


@dataclass(frozen=True)
class Arithmetic:
    """Counted value of a claim, with the range that rounding and unstated conditions leave open."""

    value: float
    """Share saved, or ratio, at the printed k and the stated (or the shortest) sample."""
    low: float
    high: float
    ceiling: float | None
    """Share that would be saved if routed experts were all FLOPs; None for ratios."""
    full_flops: Flops | None
    """FLOPs of the model's own top-k over the sample."""


def claim_policy(claim: Claim, k: float | None = None) -> Policy:
    """Policy of a claim's router, at the claim's mean k or at another `k`.

    Ada-K's weights are the paper's, Equation 2: a sum and a division more on models that do not
    renormalise, and no FLOP.
    """
    mean = k if k is not None or claim.mean_k is None else claim.mean_k.value
    options = ({"weights": "paper"} if claim.router == "ada-k" else {}) | dict(claim.options)
    if mean is not None and not claim.k_shares:
        options |= {"top_k": round(mean)} if claim.router == "top-k" else {"mean_k": mean}
    return policy(claim.router, options, claim.source)


def claim_point(claim: Claim) -> OperatingPoint | None:
    """Distribution of k that the method states; None where the policy's own holds."""
    if not claim.k_shares:
        return None
    return OperatingPoint(claim.k_shares, "imposed", claim.source)


def model_flops(
    model: ModelSpec,
    router: Policy,
    num_tokens: int,
    point: OperatingPoint | None = None,
    *,
    head: bool = True,
) -> Flops:
    """FLOPs of one forward pass over a sample, attention scores in full."""
    workload = Workload("prefill", "decoder", batch=1, sequence_length=num_tokens)
    load = router.load(model, num_tokens, point or router.operating_point(model))
    routing = router.ops(model, num_tokens, workload.dtype)
    moe = layer_ops(model, workload, routing, load, EXPERT_BACKENDS["grouped"])
    feed_forward = dense_ffn_ops(model, num_tokens, workload.dtype)
    dense = (*attention_ops(model, workload), *feed_forward)
    a = model.attention
    width = query_width(a) + a.num_heads * (a.value_head_dim or a.head_dim)
    masked = model.num_layers * 2.0 * num_tokens * (num_tokens - 1) / 2 * width
    return (
        model.num_moe_layers * total_flops(moe)
        + (model.num_layers - model.num_moe_layers) * total_flops(dense)
        + masked
        + head * total_flops(head_ops(model, num_tokens, workload.dtype))
    )


def flops_saved(paper: Paper, claim: Claim) -> Arithmetic:
    """Share of the model's FLOPs that the router saves at the published k."""
    assert claim.model is not None
    model, base = load_model(claim.model), policy("top-k")
    lengths = [paper.sample_tokens] if paper.sample_tokens else [SHORTEST, LONGEST]
    k = claim.mean_k or Rounded(float(model.top_k), 0.0)

    def saved(at: float, tokens: int) -> float:
        router = claim_policy(claim, at if claim.k else None)
        own = model_flops(model, router, tokens, claim_point(claim))
        return 1 - own / model_flops(model, base, tokens)

    ends = [saved(at, tokens) for at in (k.low, k.high) for tokens in lengths]
    return Arithmetic(
        value=saved(k.value, lengths[0]),
        low=min(ends),
        high=max(ends),
        ceiling=1 - k.value / model.top_k,
        full_flops=model_flops(model, base, lengths[0]) if paper.sample_tokens else None,
    )


def time_ratio(claim: Claim) -> Arithmetic | None:
    """Training time over the baseline's if it followed FLOPs; None if there is nothing to count.

    Counted are the layers alone, for one token and without attention scores: head and scores
    would make any overhead smaller.
    """
    if claim.layers is None:
        ratio = claim.flops_ratio
        return None if ratio is None else Arithmetic(ratio, ratio, ratio, None, None)
    model = ModelSpec(
        name="layers",
        vocab_size=1,  # a placeholder: the head is not counted
        attention=Attention("gqa", 1, 1, head_dim=claim.layers.hidden_size),
        gate=Gate("softmax", renormalise=True),
        **vars(claim.layers),
    )
    routers = claim_policy(claim), policy("top-k")
    own, base = (model_flops(model, router, 1, head=False) for router in routers)
    return Arithmetic(own / base, 1.0, own / base, None, None)
