"""What differs between a family of transformers and ours: random weights, equal inputs."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from families import FAMILIES, read_by_us, transformers_config, transformers_module
from torch import Tensor, nn

from moebench.experts.backends import load_backend
from moebench.model.attention import KVCache
from moebench.model.checkpoint.files import Checkpoint, open_checkpoint
from moebench.model.checkpoint.layers import base_gates, load_decoder
from moebench.model.decoder import StepMode
from moebench.routers.policy import policy
from moebench.routers.routing import Router, Routing, build_routers
from moebench.spec.model import ModelSpec

TOKENS = 1024


def fill(module: nn.Module) -> None:
    """Random parameters as `build_decoder` has them, and correction biases of 0 +- 0.1."""
    named = [*module.named_parameters(), *module.named_buffers()]
    for name, tensor in named:
        if "inv_freq" in name:
            continue
        is_matrix = tensor.dim() > 1 and "bias" not in name
        std = tensor.shape[-1] ** -0.5 if is_matrix else 0.1
        tensor.data.normal_(1.0 if "norm" in name and "bias" not in name else 0.0, std)


def correction_bias(module: nn.Module) -> Tensor | None:
    """The correction bias of a family's router or of the layer around it."""
    named = [*module.named_parameters(), *module.named_buffers()]
    names = ("e_score_correction_bias", "expert_bias")
    return next((t.data.flatten() for name, t in named if name.endswith(names)), None)


def top_k_router(model: ModelSpec, theirs: nn.Module, correction: Tensor | None) -> Router:
    """Our router of a family, put onto theirs, in the type of their weight."""
    weight, *_ = (p for p in theirs.parameters() if p.dim() == 2 and len(p) > 1)
    bias = next((p.data for name, p in theirs.named_parameters() if name == "bias"), None)
    router = build_routers(policy("top-k"), model, 1, weight.dtype)[0].eval()
    router.start_from_base(weight.data, correction, bias)
    return router


def run_theirs(router: nn.Module, x: Tensor, correction: Tensor | None) -> tuple[Tensor, Tensor]:
    """Logits of a family's router and its weights as [tokens, experts]."""
    wide = x[None] if type(router).__name__.startswith("Afmoe") else x
    given = [correction] * (len(inspect.signature(router.forward).parameters) > 1)
    out = router(wide, *given)
    if len(out) == 2:  # Llama 4: scores of all experts, 0 where not chosen, and the logits
        return out[1], out[0]
    logits, weights, indices = out
    dense = torch.zeros(x.shape[0], logits.shape[1], dtype=weights.dtype)
    return logits, dense.scatter(1, indices, weights)


def dense_weights(routing: Routing) -> Tensor:
    """Weights of a routing as [tokens, experts]."""
    dense = torch.zeros(routing.num_tokens, routing.num_experts, dtype=routing.weights.dtype)
    return dense.index_put((routing.token_indices, routing.expert_indices), routing.weights)


def other_experts(found: Tensor, expected: Tensor) -> int:
    """Tokens that run other experts."""
    return int(((found != 0) != (expected != 0)).any(1).sum())


class GateDifference(NamedTuple):
    """How our router differs from a family's own, over `TOKENS` tokens."""

    logits: float
    """Largest difference, in fp32."""
    weights: float
    """Largest difference over the largest weight, in fp32."""
    gradients: float
    """Largest difference of the gradients of input and matrix over the largest one, in fp32."""
    tokens: int
    """Tokens with other experts in fp32."""
    bf16_tokens: int
    """Tokens with other experts in bf16."""


def gate_difference(name: str, hidden_size: int = 128) -> GateDifference:
    """Compare a family's router with ours: equal weights, equal inputs."""
    torch.manual_seed(0)
    family = FAMILIES[name]
    config = transformers_config(name, family.experts, hidden_size=hidden_size)
    model = read_by_us(name, config)
    theirs = getattr(transformers_module(name), family.router)(config).eval()
    fill(theirs)
    correction = correction_bias(theirs)
    if correction is None and model.gate.has_correction_bias:
        correction = 0.1 * torch.randn(family.experts[0])
    if correction is not None:  # kept in fp32 by checkpoints; a value that bf16 holds too
        correction.copy_(correction.bfloat16())
    x = torch.randn(TOKENS, hidden_size)
    ours = top_k_router(model, theirs, correction)
    direction = torch.randn(TOKENS, family.experts[0])

    def gradients(router: nn.Module, dense: Tensor, leaf: Tensor) -> tuple[Tensor, ...]:
        matrix, *_ = (p for p in router.parameters() if p.dim() == 2 and len(p) > 1)
        return torch.autograd.grad((dense * direction).sum(), (leaf, matrix))

    our_x, their_x = (x.clone().requires_grad_() for _ in range(2))
    logits, expected = run_theirs(theirs, their_x, correction)
    found = dense_weights(ours(our_x)[0])
    pairs = zip(gradients(ours, found, our_x), gradients(theirs, expected, their_x), strict=True)
    worst = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    with torch.no_grad():
        narrow = theirs.to(torch.bfloat16)
        coarse = top_k_router(model, narrow, correction)(x.bfloat16())[0]
        if model.gate.router_dtype == "float32":
            narrow = narrow.float()  # its values are bf16's; Hunyuan keeps it so, others cast it
        narrow_expected = run_theirs(narrow, x.bfloat16(), correction)[1]
        return GateDifference(
            float((ours.scores(x)[0] - logits).abs().max()),
            float((found - expected).abs().max() / expected.abs().max()),
            worst,
            other_experts(found, expected),
            other_experts(dense_weights(coarse), narrow_expected),
        )


def saved_family(name: str, folder: Path) -> tuple[Any, Any]:
    """A tiny model of transformers with random weights, saved as a checkpoint; and its config."""
    from transformers import AutoModel

    torch.manual_seed(0)
    config = transformers_config(name, (16, 4))
    theirs = AutoModel.from_config(config).eval()
    fill(theirs)
    theirs.save_pretrained(folder)
    return theirs, config


def loaded_routers(checkpoint: Checkpoint, layers: Sequence[int]) -> list[Router]:
    """Our top-k of some layers, put onto the checkpoint's."""
    routers = build_routers(policy("top-k"), checkpoint.model, len(layers), torch.float32)
    for router, gate in zip(routers, base_gates(checkpoint, layers), strict=True):
        router.eval().start_from_base(*gate)
    return routers


class LayersDifference(NamedTuple):
    """Largest difference of the output of two decoder layers over the largest output, in fp32."""

    prefill: float
    cached: float
    """Outputs of tokens that run in parts of 20, of 5, and eight times of 1 against a cache."""


@torch.no_grad()
def layers_difference(name: str, folder: Path) -> LayersDifference:
    """Compare two decoder layers of a family with ours, loaded from a checkpoint; equal inputs."""
    from transformers import DynamicCache

    theirs, config = saved_family(name, folder)
    checkpoint = open_checkpoint(str(folder))
    model, decoder = checkpoint.model, load_decoder(checkpoint, (0, 1), torch.float32)
    routers = loaded_routers(checkpoint, (0, 1))
    outputs: list[Tensor] = []
    last = theirs.layers[-1]
    last.register_forward_hook(
        lambda _, __, out: outputs.append(out if isinstance(out, Tensor) else out[0])
    )
    x = 0.05 * torch.randn(2, 33, 64)
    theirs(inputs_embeds=x, use_cache=False)
    experts, kv = load_backend("grouped"), KVCache(model.attention, (2, 2, 33), torch.float32)
    whole = decoder(x, routers, experts, StepMode("decoder"))[0]
    largest = float(outputs[0].abs().max())
    prefill = float((whole - outputs[0]).abs().max()) / largest
    cache, cached = DynamicCache(config=config), 0.0
    for part in x.split([20, 5] + [1] * 8, dim=1):
        theirs(inputs_embeds=part, past_key_values=cache, use_cache=True)
        y = decoder(part, routers, experts, StepMode("decoder", kv))[0]
        kv.length += part.shape[1]
        cached = max(cached, float((y - outputs[-1]).abs().max()) / largest)
    return LayersDifference(prefill, cached)
