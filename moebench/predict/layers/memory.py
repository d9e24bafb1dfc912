"""Peak memory of layers as this repository runs them: weights, gradients, cache, activations."""

from collections.abc import Iterable

from moebench.spec.case import Workload
from moebench.spec.layer import cache_elements_per_token, cached_tokens
from moebench.spec.load import ExpertLoad
from moebench.spec.model import ModelSpec
from moebench.spec.parameters import attention_parameters, shared_parameters
from moebench.spec.weight_types import stored_bytes
from moebench.units import BYTES_PER_ELEMENT, Bytes


def weight_memory(
    model: ModelSpec, workload: Workload, router_parameters: float, copied: Bytes = 0.0
) -> Bytes:
    """Bytes of the weights of one layer at the workload's level, with its `router_parameters`.

    Args:
        copied: Bytes of each expert weight's copy beside the parameters.
    """
    h, experts = model.hidden_size, model.num_experts * model.expert_parameters
    elements = experts + router_parameters
    elements += shared_parameters(model) + h * model.has_shared_gate + h
    if workload.level == "decoder":
        elements += attention_parameters(model) + h
    return BYTES_PER_ELEMENT[workload.dtype] * elements + copied * experts


def cache_memory(
    model: ModelSpec, workload: Workload, window: int = 0, cache_dtype: str | None = None
) -> Bytes:
    """Bytes of one layer's KV cache, with the tokens that the step writes; see `attention_ops`."""
    if workload.level == "moe" or workload.phase == "train":
        return 0.0
    tokens = workload.batch * cached_tokens(workload, window)
    size = stored_bytes(cache_dtype or workload.dtype)
    return float(size * tokens * cache_elements_per_token(model.attention))


def activation_memory(model: ModelSpec, workload: Workload, load: ExpertLoad) -> Bytes:
    """Peak bytes that one step allocates beyond weights, cache and its input.

    In inference the peak is inside the largest expert's feed-forward network or between dispatch
    and combine: gathered rows, their outputs, the layer's residual and normalised input, and the
    intermediate of one expert at a time. In training every expert's intermediates stay for the
    backward pass.
    """
    h, f, tokens = model.hidden_size, model.intermediate_size, workload.num_tokens
    up_width = f * (model.expert_matrices - 1)
    if workload.phase == "train":
        elements = load.num_assignments * (3 * h + up_width + 2 * f) + 8 * tokens * h
    else:
        largest = max(load.tokens_per_expert, default=0.0)
        elements = 2 * load.num_assignments * h + 4 * tokens * h + largest * (up_width + f)
    return float(BYTES_PER_ELEMENT[workload.dtype] * elements)


def layers_memory(
    model: ModelSpec,
    workload: Workload,
    loads: Iterable[ExpertLoad],
    router_parameters: float,
    copied: Bytes = 0.0,
) -> Bytes:
    """Peak bytes of the layers run, one load a layer; activations add up only in training."""
    activations = [activation_memory(model, workload, load) for load in loads]
    per_layer = weight_memory(model, workload, router_parameters, copied)
    per_layer += cache_memory(model, workload)
    if workload.phase != "train":
        return len(activations) * per_layer + max(activations)
    gradients = weight_memory(model, workload, router_parameters)
    return len(activations) * (per_layer + gradients) + sum(activations)
