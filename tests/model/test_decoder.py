"""The decoder stack against naive definitions, and prefill against token-by-token decode."""

from dataclasses import replace

import pytest
import reference
import torch
from torch import Tensor

from moebench.experts.backends import load_backend
from moebench.model.attention import KVCache
from moebench.model.decoder import Decoder, Layer, StepMode, build_decoder, training_loss
from moebench.model.random_numbers import fill_normal
from moebench.routers.auxiliary import AuxiliaryLoss
from moebench.routers.policy import known_policies, policy
from moebench.routers.routing import Router, build_routers, known_builders
from moebench.spec.attention import Attention
from moebench.spec.model import ModelSpec

GROUPED = load_backend("grouped")


def dressed(model: ModelSpec, which: str) -> ModelSpec:
    """`model` with the extras of published models."""
    a = model.attention
    return {
        "mixtral": model,
        "qwen1.5": replace(
            model,
            attention=replace(a, has_bias=True, num_kv_heads=4),
            shared_intermediate_size=24,
            has_shared_gate=True,
        ),
        "qwen3": replace(model, attention=replace(a, norm="per-head", head_dim=16)),
        "olmoe": replace(model, attention=replace(a, norm="full", num_kv_heads=4)),
        "deepseek": replace(model, shared_intermediate_size=24),
        "two matrices": replace(
            model, is_gated=False, activation="relu2", shared_intermediate_size=24
        ),
        "granite": replace(
            model,
            residual_multiplier=0.22,
            shared_intermediate_size=24,
            attention=replace(a, softmax_scale=0.3),
        ),
        "glm-4": replace(model, attention=replace(a, rotary_dim=4, norm="per-head", has_bias=True)),
        "hunyuan": replace(
            model, attention=replace(a, norm="per-head", norm_after_rotary=True), norm_epsilon=1e-2
        ),
        "phi": replace(
            model, norm="layer", attention=replace(a, has_bias=True, has_output_bias=True)
        ),
        "dbrx": replace(model, norm="layer-without-bias"),
        "sliding": replace(model, attention=replace(a, window=2, full_attention_step=2)),
    }[which]


STEP_BOUND = {"balanced", "oea"}
"""Routers for which a token's experts depend on the rest of its step: parts route differently."""
KINDS = ["mixtral", "qwen1.5", "qwen3", "olmoe", "deepseek", "two matrices"]
KINDS += ["granite", "glm-4", "hunyuan", "phi", "dbrx", "sliding"]


def top_k_routers(model: ModelSpec, dtype: torch.dtype, num_layers: int = 2) -> list[Router]:
    return build_routers(policy("top-k"), model, num_layers, dtype)


def normed(norm: torch.nn.Module, model: ModelSpec, x: Tensor) -> Tensor:
    """A norm over the hidden size of one sequence, token by token."""
    weight, bias = norm.weight, getattr(norm, "bias", None)
    if model.norm == "rms":
        rows = [reference.rms_norm(row, weight, model.norm_epsilon) for row in x]
    else:
        shift = 0.0 if bias is None else bias
        rows = [reference.layer_norm(row, weight, shift, model.norm_epsilon) for row in x]
    return torch.stack(rows)


def naive_attention(layer: Layer, model: ModelSpec, x: Tensor) -> Tensor:
    """The attention half of one sequence [sequence, hidden], head by head."""
    a, half = model.attention, layer.attention
    x_normed = normed(layer.attention_norm, model, x)

    def project(name: str, num_heads: int) -> Tensor:
        linear = getattr(half, name)
        y = x_normed @ linear.weight.T + (0 if linear.bias is None else linear.bias)
        if a.norm == "full" and name != "value":
            weight = getattr(half, f"{name}_norm").weight
            y = torch.stack([reference.rms_norm(row, weight, model.norm_epsilon) for row in y])
        y = y.view(len(x), num_heads, a.head_dim)
        if name == "value":
            return y
        rows = []
        for position in range(len(x)):
            for head in range(num_heads):
                one, rotary = y[position, head], a.rotary_dim or a.head_dim
                for step in ("rotate", "norm") if a.norm_after_rotary else ("norm", "rotate"):
                    if step == "rotate":
                        turned = reference.rotate(one[:rotary], position, a.rope_theta)
                        one = torch.cat((turned, one[rotary:]))
                    elif a.norm == "per-head":
                        weight = getattr(half, f"{name}_norm").weight
                        one = reference.rms_norm(one, weight, model.norm_epsilon)
                rows.append(one)
        return torch.stack(rows).view_as(y)

    query, key = project("query", a.num_heads), project("key", a.num_kv_heads)
    value = project("value", a.num_kv_heads)
    group = a.num_heads // a.num_kv_heads
    window = a.window if half.layer in a.windowed_among(model.num_layers) else 0
    heads = [
        reference.causal_attention(
            query[:, h], key[:, h // group], value[:, h // group], a.softmax_scale, window
        )
        for h in range(a.num_heads)
    ]
    bias = 0 if half.output.bias is None else half.output.bias
    y = torch.cat(heads, dim=1) @ half.output.weight.T + bias
    return x + model.residual_multiplier * y


def naive_moe(layer: Layer, model: ModelSpec, router: Router, x: Tensor) -> Tensor:
    """The MoE half of one sequence [sequence, hidden], token by token."""
    x_normed = normed(layer.moe_norm, model, x)
    routing, _ = router(x_normed)
    experts = layer.experts
    y = reference.moe_layer(x_normed, routing, experts.gate_up, experts.down, model.is_gated)
    if layer.shared is not None:
        for token, row in enumerate(x_normed):
            shared = reference.expert(
                row, layer.shared.gate_up.weight, layer.shared.down.weight, model.is_gated
            )
            if layer.shared.gate is not None:
                shared = shared * torch.sigmoid(layer.shared.gate.weight @ row)
            y[token] = y[token] + shared
    return x + model.residual_multiplier * y


@pytest.mark.parametrize(
    ("which", "level"), [*((which, "decoder") for which in KINDS), ("qwen1.5", "moe")]
)
@torch.no_grad()
def test_a_step_is_the_naive_definition_layer_by_layer(
    which: str, level: str, tiny: ModelSpec
) -> None:
    model = dressed(tiny, which)
    decoder = build_decoder(model, 2, torch.float64, seed=1)
    routers = top_k_routers(model, torch.float64)
    x = torch.randn(2, 5, model.hidden_size, dtype=torch.float64)
    y, _ = decoder(x, routers, GROUPED, StepMode(level))
    for sequence in range(2):
        expected = x[sequence]
        for layer, router in zip(decoder.layers, routers, strict=True):
            assert isinstance(layer, Layer)
            if level == "decoder":
                expected = naive_attention(layer, model, expected)
            expected = naive_moe(layer, model, router, expected)
        # Angles and routing scores are fp32 even in a float64 model.
        torch.testing.assert_close(y[sequence], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "first"),
    [
        *((name, 4) for name in sorted(set(known_builders()) - STEP_BOUND)),
        ("top-k", 1),
        ("top-k", 6),
    ],
)
@torch.no_grad()
def test_prefill_then_decode_is_one_long_prefill(name: str, first: int, tiny: ModelSpec) -> None:
    """In one part of `first` tokens, one of 2, then token by token."""
    options = {"mean_k": 1.4} if "mean_k" in known_policies()[name].__dataclass_fields__ else {}
    decoder = build_decoder(tiny, 2, torch.float64)
    routers = build_routers(policy(name, options), tiny, 2, torch.float64)
    for router in routers:
        router.eval()
    x = torch.randn(3, 10, tiny.hidden_size, dtype=torch.float64)
    whole, _ = decoder(x, routers, GROUPED, StepMode("decoder"))
    cache = KVCache(tiny.attention, (2, 3, 10), torch.float64)
    parts = []
    for part in x.split([first, 2] + [1] * (8 - first), dim=1):
        y, _ = decoder(part, routers, GROUPED, StepMode("decoder", cache))
        cache.length += part.shape[1]
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_a_step_leaves_the_length_of_the_cache_alone_and_can_be_repeated(tiny: ModelSpec) -> None:
    decoder, routers = build_decoder(tiny, 2, torch.float32), top_k_routers(tiny, torch.float32)
    cache = KVCache(tiny.attention, (2, 4, 9), torch.float32)
    cache.fill_random(8, seed=3)
    x = torch.randn(4, 1, tiny.hidden_size)
    first, _ = decoder(x, routers, GROUPED, StepMode("decoder", cache))
    again, _ = decoder(x, routers, GROUPED, StepMode("decoder", cache))
    assert cache.length == 8
    assert torch.equal(first, again)


@torch.no_grad()
def test_the_router_of_each_layer_sees_what_router_input_says(tiny: ModelSpec) -> None:
    decoder, routers = build_decoder(tiny, 2, torch.float32), top_k_routers(tiny, torch.float32)
    x = torch.randn(2, 3, tiny.hidden_size)
    seen: list[Tensor] = []
    for router in routers:
        router.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    decoder(x, routers, GROUPED, StepMode("decoder"))
    for index in range(2):
        found, _ = decoder.router_input(x, routers[:index], GROUPED, StepMode("decoder"))
        assert torch.equal(found, seen[index])


@torch.no_grad()
def test_decode_does_not_copy_the_keys_of_its_context(tiny: ModelSpec) -> None:
    """No operation of a decode step writes as much as the keys of one layer hold."""
    decoder, routers = build_decoder(tiny, 1, torch.bfloat16), top_k_routers(tiny, torch.bfloat16)
    cache = KVCache(tiny.attention, (1, 2, 5000), torch.bfloat16)
    cache.fill_random(5000, seed=0)
    cache.length = 4096
    x = torch.randn(2, 1, tiny.hidden_size, dtype=torch.bfloat16)
    with torch.profiler.profile(profile_memory=True) as profile:
        decoder(x, routers[:1], GROUPED, StepMode("decoder", cache))
    largest = max(event.self_cpu_memory_usage for event in profile.key_averages())
    assert 0 < largest < cache.keys.nbytes / 2


def test_training_reaches_every_parameter_that_runs(tiny: ModelSpec) -> None:
    model = dressed(tiny, "qwen1.5")
    decoder, routers = build_decoder(model, 2, torch.float32), top_k_routers(model, torch.float32)
    x = torch.randn(4, 16, model.hidden_size)
    y, routings = decoder(x, routers, GROUPED, StepMode("decoder"))
    training_loss(y, routings, torch.randn_like(x)).backward()  # type: ignore[no-untyped-call]
    modules = [decoder, *routers]
    for parameter in (p for module in modules for p in module.parameters()):
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0
    decoder.zero_grad(set_to_none=True)

    y, routings = decoder(x, routers, GROUPED, StepMode("moe"))
    training_loss(y, routings, torch.randn_like(x)).backward()  # type: ignore[no-untyped-call]
    for name, parameter in decoder.named_parameters():
        assert (parameter.grad is None) == (".attention" in name), name


def test_the_loss_is_the_mean_squared_error_and_what_the_routers_add(tiny: ModelSpec) -> None:
    decoder, routers = build_decoder(tiny, 2, torch.float32), top_k_routers(tiny, torch.float32)
    x, target = torch.randn(1, 8, tiny.hidden_size), torch.randn(1, 8, tiny.hidden_size)
    y, routings = decoder(x, routers, GROUPED, StepMode("moe"))
    half = AuxiliaryLoss(torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75]), "sum")
    routings = [replace(routing, aux_loss=half) for routing in routings]
    expected = ((y - target) ** 2).mean() + 1.0
    torch.testing.assert_close(training_loss(y, routings, target), expected)


@torch.no_grad()
def test_activations_keep_their_size_through_the_layers(tiny: ModelSpec) -> None:
    model = replace(tiny, num_layers=4, hidden_size=128, intermediate_size=64)
    decoder = build_decoder(model, 4, torch.float32)
    x = torch.randn(1, 64, 128)
    y, _ = decoder(x, top_k_routers(model, torch.float32, 4), GROUPED, StepMode("decoder"))
    assert 0.5 < y.std() < 4


@torch.no_grad()
def test_stages_are_marked_in_the_order_they_run(tiny: ModelSpec) -> None:
    model = dressed(tiny, "deepseek")
    decoder, routers = build_decoder(model, 1, torch.float32), top_k_routers(model, torch.float32)
    x = torch.randn(1, 2, model.hidden_size)

    def marks(level: str) -> list[str]:
        seen: list[str] = []
        decoder(x, routers[:1], GROUPED, StepMode(level, mark=seen.append))
        return seen

    assert marks("moe") == ["norm", "router", "experts", "shared"]
    assert marks("decoder") == ["norm", "attention", "norm", "router", "experts", "shared"]


def test_weight_bytes_are_the_parameters_of_the_level(tiny: ModelSpec) -> None:
    """Mixtral-like: 3 matrices an expert, 4 attention matrices, a norm for each half."""
    decoder = Decoder(tiny, 3, torch.bfloat16)
    h, f, kv = 32, 16, 2 * 8
    moe = 4 * 3 * h * f + h
    attention = 2 * h * h + 2 * h * kv + h
    assert decoder.weight_bytes("moe") == 3 * 2 * moe
    assert decoder.weight_bytes("decoder") == 3 * 2 * (moe + attention)
    cache = KVCache(tiny.attention, (3, 5, 7), torch.bfloat16)
    assert cache.num_bytes == 2 * 2 * 3 * 5 * 7 * kv


def test_random_weights_are_normal_and_do_not_repeat() -> None:
    tensor = torch.empty(3 << 18)
    fill_normal(tensor, 1.0, 0.5, (7, 1))
    assert abs(tensor.mean() - 1) < 0.003
    assert abs(tensor.std() - 0.5) < 0.003
    inside = ((tensor - 1).abs() < 0.5).float().mean()
    assert abs(inside - 0.6827) < 0.003
    assert tensor.unique().numel() > 0.9 * tensor.numel()
    blocks = tensor.view(3, -1)
    assert torch.corrcoef(blocks).fill_diagonal_(0).abs().max() < 0.01


@pytest.mark.parametrize("other", [(7, 2), (8, 1)])
def test_weights_depend_on_the_seed_and_not_on_the_threads(
    other: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def filled(seed: tuple[int, int]) -> Tensor:
        tensor = torch.empty(1 << 19)
        fill_normal(tensor, 0.0, 1.0, seed)
        return tensor

    first = filled((7, 1))
    assert not torch.equal(first, filled(other))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert torch.equal(first, filled((7, 1)))


def test_a_model_whose_attention_is_not_executed_runs_at_level_moe(tiny: ModelSpec) -> None:
    latent = Attention(
        kind="mla",
        num_heads=4,
        num_kv_heads=4,
        head_dim=8,
        kv_rank=16,
        rope_head_dim=4,
        value_head_dim=8,
    )
    model = replace(tiny, attention=latent)
    decoder, x = build_decoder(model, 1, torch.float32), torch.randn(2, 3, model.hidden_size)
    routers = top_k_routers(model, torch.float32, 1)
    y, _ = decoder(x, routers, GROUPED, StepMode("moe"))
    assert y.shape == x.shape
    with pytest.raises(ValueError, match=r"tiny .* attention.kind: found 'mla', expected 'gqa'"):
        decoder(x, routers, GROUPED, StepMode("decoder"))


def test_equal_seeds_build_equal_stacks(tiny: ModelSpec) -> None:
    one, same, other = (
        build_decoder(tiny, 1, torch.float32, seed=seed).parameters() for seed in (5, 5, 6)
    )
    for a, b, c in zip(one, same, other, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
