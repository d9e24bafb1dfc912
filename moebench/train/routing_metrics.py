"""What a training's curve tells about routing, of the tokens of one step."""

from collections.abc import Sequence

from moebench.routers.routing import Routing


def routing_metrics(routings: Sequence[Routing]) -> dict[str, float]:
    """Means over layers, and the mean k of each layer.

    mean_k: experts per token
    idle_share: share of tokens that run no expert in a layer
    load_imbalance: tokens of the busiest expert over those of the mean expert; 1 is balance
    """
    layers = len(routings)
    means = [routing.num_assignments / routing.num_tokens for routing in routings]
    idle = sum(float((r.experts_per_token() == 0).float().mean()) for r in routings)
    loads = [routing.tokens_per_expert.double() for routing in routings]
    imbalance = sum(float(load.max() / load.mean().clamp(min=1e-9)) for load in loads)
    return {
        "mean_k": sum(means) / layers,
        "idle_share": idle / layers,
        "load_imbalance": imbalance / layers,
        **{f"mean_k_layer_{layer}": mean for layer, mean in enumerate(means)},
    }
