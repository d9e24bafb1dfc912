"""Put a router of moebench into a transformers model in place, and take it out again."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from moebench.experts.backends import check_takes, load_backend, why_not
from moebench.experts.weights import Experts
from moebench.model.huggingface.blocks import Block, described, moe_blocks
from moebench.model.huggingface.dispatch import execution_device
from moebench.model.huggingface.experts import ragged_experts
from moebench.model.huggingface.gates import DepthStates, PluggedRouter, routed_gate
from moebench.routers.policy import Policy, policy
from moebench.routers.routing import Router, build_routers
from moebench.spec.model import ModelSpec

ATTRIBUTE = "moebench_applied"
"""Attribute of a model that holds what was applied to it."""


@dataclass(frozen=True, eq=False)
class AppliedRouter:
    """A router in a model: what it is, where it sits, and what to put back."""

    name: str
    """Name or file of the router that `apply_router` was given."""
    policy: Policy
    model: ModelSpec
    expert_backend: str
    blocks: Sequence[Block] = field(repr=False)
    """MoE blocks, from the first layer up; each one's `gate` is now ours."""
    routers: Sequence[Router]
    """The router of each block; their parameters are among the model's own."""
    originals: Sequence[tuple[nn.Module, nn.Module]] = field(repr=False)
    """Each block's own router and experts."""
    hooks: Sequence[RemovableHandle] = field(repr=False)


def apply_router(
    model: nn.Module, name: str, *, expert_backend: str = "grouped", **options: Any
) -> AppliedRouter:
    """Replace the routers of a transformers model in place, and run its experts raggedly.

    Without options every router starts as the model's own top-k: the same experts for every token
    (equal scores included), weighted in the model's own convention. `top_k=1` on "top-k", the
    copied rows of AdaMoE (`start="copied-rows"`) or the paper's RMoE (`residual=False`) change the
    model from the start. Shared experts, attention and everything else stay the model's own code.

    Move, cast and spread the model (`device_map`) before: the routers are made in its type, each
    on the device that runs its layer. Shard it (FSDP) afterwards.
    `output_router_logits=True` records our logits, but the auxiliary loss that transformers adds up
    from them assumes the config's k; a routing's own `aux_loss` is the router's.

    Args:
        name: A router of moebench, or "package.module:Policy" for one of your own.
        expert_backend: What runs the experts; "grouped" trains too.
        options: The router's, as in a suite file.

    Raises:
        ValueError: the family is not known, the model has no MoE block or has a router applied
            already, an option is unknown, or the backend cannot run these experts.
    """
    if hasattr(model, ATTRIBUTE):
        applied = getattr(model, ATTRIBUTE).policy.name
        raise ValueError(f"model: found {applied!r} applied to it; call remove_router first")
    spec, blocks = described(model), moe_blocks(model)
    starting = policy(name, {}, may_import=True).identity_options(spec)
    given = {key: list(v) if isinstance(v, tuple) else v for key, v in options.items()}
    chosen = policy(name, {**starting, **given}, may_import=True)
    experts = _executions(blocks, expert_backend)
    routers = started_routers(chosen, spec, blocks)
    states, originals, hooks = DepthStates(), [], []
    for layer, (block, router) in enumerate(zip(blocks, routers, strict=True)):
        originals.append((block.gate, block.experts))
        plugged = PluggedRouter(router, layer, states).train(block.gate.training)
        setattr(block.module, block.gate_name, routed_gate(block.gate, plugged))
        setattr(block.module, block.experts_name, experts[layer])
        if block.layer is not None:
            hooks.append(block.layer.register_forward_hook(states.hook))
    applied = AppliedRouter(
        name, chosen, spec, expert_backend, blocks, tuple(routers), tuple(originals), tuple(hooks)
    )
    setattr(model, ATTRIBUTE, applied)
    return applied


def remove_router(model: nn.Module) -> None:
    """Put a model's own routers and experts back, as they were."""
    applied = applied_router(model)
    for block, (gate, experts) in zip(applied.blocks, applied.originals, strict=True):
        gate.train(block.gate.training)
        experts.train(block.experts.training)
        setattr(block.module, block.gate_name, gate)
        setattr(block.module, block.experts_name, experts)
    for hook in applied.hooks:
        hook.remove()
    delattr(model, ATTRIBUTE)


def applied_router(model: nn.Module) -> AppliedRouter:
    """What was applied to a model; a ValueError where nothing was."""
    if not hasattr(model, ATTRIBUTE):
        raise ValueError("model: found no router applied to it, expected one of apply_router")
    applied: AppliedRouter = getattr(model, ATTRIBUTE)
    return applied


def _executions(blocks: Sequence[Block], name: str) -> list[nn.Module]:
    """The experts of each block, run by a backend; a ValueError where it cannot."""
    made: list[nn.Module] = []
    for block in blocks:
        first, weight = next(block.experts.named_parameters())
        device = execution_device(block.experts, first)
        execution: Experts = load_backend(name, device)
        if why := why_not(name, device, weight.dtype):
            raise ValueError(f"expert backend {name!r} does not run this model: {why}")
        ragged = ragged_experts(block.experts, execution)
        check_takes(name, ragged.expert_weights[0])
        made.append(ragged)
    return made


def started_routers(chosen: Policy, spec: ModelSpec, blocks: Sequence[Block]) -> list[Router]:
    """A router for each block, on its device, started from the base's own."""
    devices = [block.device for block in blocks]
    with torch.device(devices[0]):
        routers = build_routers(chosen, spec, len(blocks), blocks[0].weight.dtype)
    parameters = [id(parameter) for router in routers for parameter in router.parameters()]
    if len(set(devices)) > 1 and len(set(parameters)) < len(parameters):
        raise ValueError(
            f"{chosen.name}: found layers on {len(set(devices))} devices, expected one: its layers "
            "share parameters"
        )
    for router, block, device in zip(routers, blocks, devices, strict=True):
        router.to(device)
        if not chosen.replaces_base:
            router.start_from_base(block.weight, block.correction_bias, block.bias)
    return routers
