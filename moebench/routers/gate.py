"""Gate conventions: from router logits to a choice, and from a choice to weights.

Base models score with softmax or sigmoid, may renormalise and scale the chosen scores, and may
limit the choice to groups of experts. Every router follows its base model in this. Logits are fp32
here; `Gate.router_dtype` says in which type the product that makes them is.

Equal scores: the first column wins, in every router. A router that was put onto a checkpoint takes
the experts that torch.topk takes at the checkpoint's k before others of equal score, since that is
what the checkpoint ran; in bf16, 4 to 5 % of tokens have a tie at place k.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moebench.routers.routing import ChoiceScores, SlotExperts, SlotMask, SlotWeights
from moebench.spec.gate import Gate


def random_weight(outputs: int, inputs: int, dtype: torch.dtype) -> nn.Parameter:
    """A normal weight of variance 1 / inputs: logits of RMS-normed inputs have unit variance."""
    return nn.Parameter((torch.randn(outputs, inputs) * inputs**-0.5).to(dtype))


def product_dtype(gate: Gate, dtype: torch.dtype) -> torch.dtype:
    """Type of the router's weights and logits in a model of a dtype."""
    return torch.float32 if gate.router_dtype == "float32" else dtype


def gate_scores(router_logits: ChoiceScores, gate: Gate) -> ChoiceScores:
    """Softmax or sigmoid of the logits; base models do this in fp32 whatever their dtype."""
    return router_logits.softmax(-1) if gate.score == "softmax" else router_logits.sigmoid()


def choice_scores(
    router_logits: ChoiceScores,
    selection_bias: Float[Tensor, " choices"],
    gate: Gate,
    num_experts: int,
) -> ChoiceScores:
    """Scores that compete for the slots; -inf where the group limit forbids an expert.

    Scores compete, and in their place logits where the order is the same (`Gate.logits_compete`).
    The bias takes part in the choice and never in the weights: DeepSeek-V3, Ernie 4.5 and LongCat
    add their correction bias to scores. Columns beyond `num_experts` (null experts) have no group.
    """
    scores = router_logits if gate.logits_compete else gate_scores(router_logits, gate)
    scores = scores + selection_bias
    if gate.num_groups == 1:
        return scores
    limited = limit_to_groups(scores[:, :num_experts], gate)
    if scores.shape[1] == num_experts:
        return limited
    return torch.cat((limited, scores[:, num_experts:]), dim=1)


def limit_to_groups(
    scores: Float[Tensor, "tokens experts"], gate: Gate
) -> Float[Tensor, "tokens experts"]:
    """Mask all but the best groups of consecutive experts.

    A group is as good as the sum of its two best experts, or as its best one. The mask is -inf:
    with 0 an excluded expert can beat one whose biased score is negative.

    **Source** DeepSeek-V3 (2412.19437), section 2.1.2; DeepSeek-V2 (2405.04434), section 2.2.2.
    """
    num_tokens, num_experts = scores.shape
    grouped = scores.reshape(num_tokens, gate.num_groups, num_experts // gate.num_groups)
    if gate.group_score == "maximum":
        group_scores = grouped.amax(2)
    else:
        group_scores = grouped.topk(min(2, grouped.shape[2]), dim=2).values.sum(2)
    kept = group_scores.topk(gate.top_k_groups, dim=1).indices
    # 0 and not False, which no traced graph can hold.
    excluded = torch.ones_like(group_scores, dtype=torch.bool).scatter(1, kept, 0)
    return grouped.masked_fill(excluded[:, :, None], -torch.inf).flatten(1)


def first_of_equals(bias: Float[Tensor, " choices"]) -> Float[Tensor, " choices"]:
    """A bias in fp64 under which the first of equal columns wins, without an operation more.

    torch.topk promises no order among equals. A column's bias falls by 2^-40 from one to the next:
    too little to swap fp32 scores that differ (by 6e-8 below 1), and felt up to scores of 4096.
    """
    places = torch.arange(len(bias), device=bias.device)
    return bias.double() - places * 2.0**-40


def base_columns(scores: ChoiceScores, slots: int, base_top_k: int) -> SlotExperts:
    """Columns of the largest scores, best first, with the choice of torch.topk at the base's k."""
    own = scores.topk(base_top_k, dim=1).indices
    if slots <= base_top_k:
        return own[:, :slots]
    others = scores.scatter(1, own, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    return torch.cat((own, others[:, : slots - base_top_k]), dim=1)


def slot_weights(
    router_logits: Float[Tensor, "tokens experts"],
    expert_indices: SlotExperts,
    gate: Gate,
    keep: SlotMask | None = None,
) -> SlotWeights:
    """Weights of the slots; 0 where a slot is not kept.

    Sums are in fp64, where scores of 24 bits add up exactly, in any order of the slots.
    """
    weights = gate_scores(router_logits, gate).gather(1, expert_indices)
    if keep is not None:
        weights = weights * keep
    if gate.renormalise:
        total = weights.sum(1, keepdim=True, dtype=torch.float64).float()
        # A token whose slots are all dropped has 0 / 0, whose gradient would be NaN.
        weights = weights / (total if keep is None else total + 1e-20)
    return weights if gate.scale == 1.0 else weights * gate.scale


def mean_probabilities(router_logits: ChoiceScores, gate: Gate) -> Float[Tensor, " choices"]:
    """P of the balance losses: mean over tokens of their scores, which sum to 1 for each token."""
    scores = gate_scores(router_logits, gate)
    if gate.score == "sigmoid":
        scores = scores / scores.sum(1, keepdim=True)
    return scores.sum(0) / max(1, scores.shape[0])


def balance_factors(num_experts: int, expert_indices: SlotExperts) -> Float[Tensor, " experts"]:
    """N f of the balance loss N sum_i f_i P_i, which is 1 at perfect balance.

    f_i is expert i's share of all *assignments*. The other normalisation in the wild sums f over
    the slots and is top_k times as large.

    **Source** Fedus et al., Switch Transformers (2101.03961), equations 4 to 6.
    """
    counts = torch.bincount(expert_indices.flatten(), minlength=num_experts)
    return counts * (num_experts / max(1, expert_indices.numel()))
