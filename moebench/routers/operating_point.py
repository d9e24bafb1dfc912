"""Operating points: biases that bring a router to one, and a check that it is there.

An untrained router's counts and loads are artefacts of its initialisation. Biases on the choice
impose, over a stream of tokens, the distribution of k and the experts' marginals that a comparison
wants. Choosing the best 1 of N counts and the best k experts are one problem with one solver.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moebench.routers.routing import ChoiceScores, Routing
from moebench.spec.case import OperatingPoint
from moebench.spec.load import marginals

MEAN_K_TOLERANCE = 0.01
LOAD_TOLERANCE = 0.03
"""Largest relative error of an expert's load that `check_point` accepts. Of an expert with less
than half an equal share it accepts one token too, since loads are whole numbers."""
CLOSE_ENOUGH = 0.015
"""Largest relative error of an expert's load at which the solver stops."""
NEVER = -1e4
"""The bias of a column that no token should choose."""
MAX_ROUNDS = 80


def expert_marginals(
    k_distribution: tuple[float, ...], num_experts: int, point: OperatingPoint
) -> Float[Tensor, " experts"]:
    """Probability that a token visits each expert, as in `ExpertLoad.expected`; fp64."""
    shares = marginals(num_experts, k_distribution, point.skew, point.expert_shares)
    return torch.from_numpy(shares.copy())


def whole_counts(shares: Float[Tensor, " choices"], total: int) -> Int[Tensor, " choices"]:
    """Whole numbers nearest to `shares` (scaled to sum to `total`), by largest remainder."""
    exact = shares.double() * (total / shares.sum())
    counts = exact.floor().long()
    missing = total - int(counts.sum())
    counts[(exact - counts).argsort(descending=True, stable=True)[:missing]] += 1
    return counts


def impose_marginals(
    biased_scores: Callable[[Tensor], Tensor],
    selection_bias: Float[Tensor, " choices"],
    slots_of_token: Int[Tensor, " tokens"],
    point: OperatingPoint,
    num_experts: int,
) -> None:
    """Set `selection_bias` so that the experts' marginals are the point's over a stream.

    `biased_scores` gives what competes, [tokens, choices], under a bias [choices]. Columns beyond
    `num_experts` are null experts. They share one bias, which sets the mean of k; without them k is
    given by `slots_of_token` and only the shape of the marginals is the point's.
    """
    num_choices, num_tokens = len(selection_bias), len(slots_of_token)
    total = assigned = int(slots_of_token.sum())
    if num_choices > num_experts:
        distribution, assigned = point.k_distribution, min(total, round(point.mean_k * num_tokens))
    else:
        histogram = torch.bincount(slots_of_token).double() / max(1, num_tokens)
        distribution = tuple(histogram.tolist())
    targets = whole_counts(expert_marginals(distribution, num_experts, point), assigned)
    if num_choices > num_experts:
        targets = torch.cat((targets, torch.tensor([total - assigned])))
    targets = targets.to(slots_of_token.device)

    def miss(loads: Int[Tensor, " targets"]) -> float:
        return float(((loads - targets).abs() / targets.clamp(min=1)).max()) / CLOSE_ENOUGH

    selection_bias.copy_(
        selection_biases(biased_scores, slots_of_token, targets, num_choices, miss)
    )


def impose_counts(
    allocator_logits: Float[Tensor, "tokens counts"],
    count_bias: Float[Tensor, " counts"],
    point: OperatingPoint,
) -> None:
    """Set `count_bias` so that the argmax gives every count its share of this stream."""
    num_tokens, num_counts = allocator_logits.shape
    device, distribution = allocator_logits.device, point.k_distribution
    if distribution[0] > 0 or len(distribution) > num_counts + 1:
        raise ValueError(
            f"k_distribution: found {distribution}, expected probabilities of 1 to {num_counts}"
        )
    shares = torch.zeros(num_counts, dtype=torch.float64)
    shares[: len(distribution) - 1] = torch.tensor(distribution[1:], dtype=torch.float64)
    slots = torch.ones(num_tokens, dtype=torch.long, device=device)
    targets = whole_counts(shares, num_tokens).to(device)
    counts = torch.arange(1, num_counts + 1, device=device)

    def miss(loads: Int[Tensor, " targets"]) -> float:
        off = loads - targets
        mean_k = float((counts * off).sum().abs() / (counts * targets).sum())
        variation = float(off.abs().sum()) / (2 * num_tokens)
        return max(mean_k / 0.002, variation / 0.005)

    count_bias.copy_(
        selection_biases(lambda bias: allocator_logits + bias, slots, targets, num_counts, miss)
    )


def selection_biases(
    biased_scores: Callable[[Tensor], Tensor],
    slots_of_token: Int[Tensor, " tokens"],
    targets: Int[Tensor, " targets"],
    num_choices: int,
    miss: Callable[[Int[Tensor, " targets"]], float],
) -> Float[Tensor, " choices"]:
    """Biases under which each column is among the best `slots_of_token` of `targets` tokens.

    This is a transport problem between tokens and columns, and the biases are its dual variables.
    Each round computes for every column the change of its own bias that would give it exactly its
    target if the others stayed (a quantile of its distances to the tokens' thresholds). The bias
    goes half of the way at first, since two columns that compete alone would each give way to the
    other, and less later. The best round is returned, however good it is (`check_point`).
    Columns beyond the targets share a bias and the last target. A `miss` of 1 ends the search.
    """
    bias = torch.zeros(num_choices, device=slots_of_token.device)
    if not len(slots_of_token):
        return bias
    scores = biased_scores(bias)
    spread = float(scores[scores.isfinite()].std())
    own = num_choices if len(targets) == num_choices else len(targets) - 1
    bias[:own][targets[:own] == 0] = NEVER
    best_bias, smallest_error = bias, math.inf
    for number in range(MAX_ROUNDS):
        margins, selected = distances_to_choice(biased_scores(bias), slots_of_token)
        loads = selected.sum(0)
        shift = shift_to_target(margins[:, :own].T, targets[:own], spread)
        if own < num_choices:
            loads = torch.cat((loads[:own], loads[own:].sum(0, keepdim=True)))
            pooled = shift_to_target(margins[:, own:].reshape(1, -1), targets[own:], spread)
            shift = torch.cat((shift, pooled.expand(num_choices - own)))
        error = miss(loads)
        if error < smallest_error:
            smallest_error, best_bias = error, bias
        if error <= 1:
            break
        bias = bias + shift * (0.5 / (1 + max(0, number - 15) / 5))
    return best_bias


def distances_to_choice(
    scores: ChoiceScores, slots_of_token: Int[Tensor, " tokens"]
) -> tuple[ChoiceScores, Bool[Tensor, "tokens choices"]]:
    """Margins over the best column left out (the chosen) or the worst one chosen; the choice."""
    num_choices = scores.shape[1]
    candidates = min(int(slots_of_token.max()) + 1, num_choices)
    top = scores.topk(candidates, dim=1)
    values = torch.nn.functional.pad(top.values, (1, 1), value=-torch.inf)
    values[:, 0] = torch.inf
    worst_chosen = values.gather(1, slots_of_token[:, None])
    best_left_out = values.gather(1, slots_of_token[:, None] + 1)
    is_slot = torch.arange(candidates, device=scores.device) < slots_of_token[:, None]
    selected = torch.zeros_like(scores, dtype=torch.bool).scatter(1, top.indices, is_slot)
    margins = scores - torch.where(selected, best_left_out, worst_chosen)
    return margins, selected


def shift_to_target(
    margins: Float[Tensor, "rows cases"], targets: Int[Tensor, " rows"], spread: float
) -> Float[Tensor, " rows"]:
    """Shifts that make `targets` margins of a row positive: at most 4 `spread`, 0 for target 0."""
    num_cases = margins.shape[1]
    largest = min(num_cases, int(targets.max()) + 1)
    descending = margins.clamp(-1e6, 1e6).topk(largest, dim=1).values
    last_in = descending.gather(1, (targets - 1).clamp(min=0)[:, None]).squeeze(1)
    first_out = descending.gather(1, targets.clamp(max=largest - 1)[:, None]).squeeze(1)
    shift = torch.where(targets == 0, 0.0, -(last_in + first_out) / 2)
    shift = torch.where(targets == num_cases, (0.1 * spread - last_in).clamp(min=0), shift)
    return shift.clamp(-4 * spread, 4 * spread)


def check_point(routing: Routing, point: OperatingPoint) -> None:
    """Check that a stream's routing shows its operating point; the error says what was reached."""
    tokens, experts = routing.num_tokens, routing.num_experts
    mean_k = routing.num_assignments / max(1, tokens)
    wanted = expert_marginals(point.k_distribution, experts, point)
    reached = routing.tokens_per_expert.cpu() / max(1, tokens)
    # Shares are relative to the mean reached, so that a wrong mean is not reported as imbalance.
    reached = reached * (point.mean_k / max(mean_k, 1e-12))
    one_token = (wanted < wanted.mean() / 2) / max(1, tokens)
    is_off = (reached - wanted).abs() > torch.maximum(LOAD_TOLERANCE * wanted, one_token)
    if abs(mean_k / point.mean_k - 1) > MEAN_K_TOLERANCE or bool(is_off.any()):
        relative = reached / wanted
        low, high = float(relative.min()), float(relative.max())
        raise ValueError(
            f"operating point not reached on a stream of {tokens} tokens and {experts} experts: "
            f"mean k is {mean_k:.4g}, expected {point.mean_k:.4g} within "
            f"{100 * MEAN_K_TOLERANCE:.0f} %; experts have {low:.3f} to {high:.3f} of their share, "
            f"expected 1 within {100 * LOAD_TOLERANCE:.0f} %; use a longer stream"
        )


def k_histogram(routing: Routing) -> tuple[float, ...]:
    """Share of the tokens with 0, 1, 2, ... experts; empty for an empty stream."""
    counts = torch.bincount(routing.experts_per_token())
    return tuple((counts.double() / max(1, routing.num_tokens)).tolist())


def lag1_correlation(routing: Routing) -> float | None:
    """Correlation of k between consecutive tokens; None where k does not vary."""
    k = routing.experts_per_token().double()
    if routing.num_tokens < 3 or not float(k[1:].std()) or not float(k[:-1].std()):
        return None
    return float(torch.corrcoef(torch.stack((k[:-1], k[1:])))[0, 1])


def step_loads(routing: Routing, num_steps: int) -> Int[Tensor, "steps experts"]:
    """Tokens of each expert in each step of a stream that was routed at once."""
    if num_steps < 1 or routing.num_tokens % num_steps:
        raise ValueError(
            f"num_steps: found {num_steps}, expected a divisor of {routing.num_tokens} tokens"
        )
    step = routing.token_indices // max(1, routing.num_tokens // num_steps)
    cells = step * routing.num_experts + routing.expert_indices
    counts = torch.bincount(cells, minlength=num_steps * routing.num_experts)
    return counts.view(num_steps, routing.num_experts)
