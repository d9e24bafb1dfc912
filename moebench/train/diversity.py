"""How alike experts are, and how much the routing of one layer says about that of the next.

RMoE (Qiu et al., 2408.06793) claims more diverse experts. Two measures: the cosine between the
outputs of different experts on the same inputs, and the mutual information of the routing of
adjacent layers.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from moebench.experts.weights import Experts, ExpertWeights, feed_forward
from moebench.model.decoder import StepMode
from moebench.model.language_model import LanguageModel
from moebench.records.router_use import SharedInformation
from moebench.routers.routing import Hidden, Router
from moebench.train.text import Windows

NUM_SHUFFLES = 5


@torch.no_grad()
def expert_cosines(
    language_model: LanguageModel, routers: Sequence[Router], windows: Windows, experts: Experts
) -> tuple[float | None, ...]:
    """Mean cosine between two experts' outputs by layer, on every token of a few windows.

    Every expert runs on every token, not only on those that are routed to it. None: one expert.
    """
    device = language_model.embedding.weight.device
    x, decoder = language_model.embedding(windows[:, :-1].to(device)), language_model.decoder
    cosines = []
    for layer, weights in enumerate(decoder.expert_weights()):
        normed, _ = decoder.router_input(x, routers[:layer], experts, StepMode("decoder"))
        cosines.append(mean_cosine(normed, weights))
    return tuple(cosines)


def mean_cosine(x: Hidden, weights: ExpertWeights) -> float | None:
    """Mean cosine of the outputs of two different experts, over pairs and tokens."""
    number = weights.num_experts
    if number < 2:
        return None
    outputs = torch.stack(
        [feed_forward(x, weights.gate_up[e], weights.down[e]) for e in range(number)]
    )
    unit = functional.normalize(outputs.double(), dim=-1)
    # The squared length of a sum of unit vectors is their number plus twice the cosines.
    squared = unit.sum(0).square().sum(-1)
    return float((squared.mean() - number) / (number * (number - 1)))


def shared_information(
    below: NDArray[np.integer], above: NDArray[np.integer], num_symbols: int, seed: int = 0
) -> SharedInformation:
    """Mutual information of two layers' routing of the same tokens, less its bias; in nats.

    Args:
        below: A symbol of each token, [tokens], from 0 to num_symbols - 1.
        above: Likewise, of the layer above.
    """
    rng = np.random.default_rng(seed)
    found = _information(below, above, num_symbols)
    shuffled = float(
        np.mean(
            [_information(below, rng.permutation(above), num_symbols) for _ in range(NUM_SHUFFLES)]
        )
    )
    entropies = [_entropy(np.bincount(each, minlength=num_symbols)) for each in (above, below)]
    return SharedInformation(found - shuffled, shuffled, *entropies)


def _information(below: NDArray[np.integer], above: NDArray[np.integer], num_symbols: int) -> float:
    """Plug-in mutual information, H(below) + H(above) - H(both)."""
    joint = np.bincount(below.astype(np.int64) * num_symbols + above, minlength=num_symbols**2)
    table = joint.reshape(num_symbols, num_symbols)
    return _entropy(table.sum(0)) + _entropy(table.sum(1)) - _entropy(joint)


def _entropy(counts: NDArray[np.integer]) -> float:
    """Entropy in nats of the shares of counts."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())
