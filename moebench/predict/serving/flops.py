"""FLOPs of a step on all devices, as papers count them."""

from moebench.experts.catalogue import EXPERT_BACKENDS
from moebench.predict.serving.deployment import Deployment
from moebench.routers.policy import Policy
from moebench.spec.layer import attention_ops, dense_ffn_ops, head_ops, layer_ops
from moebench.spec.load import ExpertLoad
from moebench.spec.ops import total_flops

BACKWARD = 2.0
"""FLOPs and time of a backward pass over its forward pass: each matrix product has two of the
same size."""


def step_flops(deployment: Deployment, router: Policy, load: ExpertLoad, batch: int) -> float:
    """FLOPs of a step on all devices, as papers count them.

    Attention is as the model's paper writes it, at the same context; the head runs on the
    positions that need it.
    """
    d, model = deployment, deployment.model
    work = d.workload(batch)
    tokens, total = work.num_tokens, 0.0
    if d.moe_layers:
        routing = router.ops(model, tokens, work.dtype)
        layer = layer_ops(model, work, routing, load, EXPERT_BACKENDS["grouped"])
        total += d.moe_layers * total_flops(layer)
    if d.dense_layers:
        dense = (*attention_ops(model, work), *dense_ffn_ops(model, tokens, work.dtype))
        total += d.dense_layers * total_flops(dense)
    if d.level == "model":
        total += total_flops(head_ops(model, d.head_positions(batch), work.dtype))
    if d.windowed_layers:
        full, windowed = (
            total_flops(attention_ops(model, work, window))
            for window in (0, model.attention.window)
        )
        total -= d.windowed_layers * (full - windowed)
    return total * (1 + BACKWARD * (d.phase == "train"))
