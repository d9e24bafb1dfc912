"""What a router that was put into a tiny copy of a family changes: nothing, or the difference.

`model/test_apply_router.py` holds the differences to bounds, `bench_identity.py` prints them. Needs
transformers.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from families import transformers_config
from family_differences import fill
from torch import Tensor

from moebench.model.huggingface.apply import applied_router, apply_router, remove_router
from moebench.model.huggingface.blocks import moe_blocks
from moebench.routers.policy import known_policies
from moebench.routers.routing import Routing

ROUTERS = tuple(sorted({*known_policies()} - {"top-k", "balanced", "skewed"}))
"""Every router that starts from a base; "balanced" reads none, "skewed" is top-k."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
EXPERTS = {"mixtral": (8, 2)}
"""Experts and how many of them a token runs, where not `USUAL_EXPERTS`. With eight, a product with
rows of a router's own beside the base's rounds the base's logits otherwise."""
USUAL_EXPERTS = (16, 4)
NEW_TOKENS = 5
MLA = {"head_dim": 64, "num_key_value_heads": 4}
"""Sizes of latent attention in the tiny copies: the rotary part of a head, and all heads."""


def tiny_model(family: str, dtype: torch.dtype, seed: int = 0) -> Any:
    """A tiny copy of a family with random weights; its first two experts tie for every token."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    changes = MLA if family.startswith("deepseek") else {}
    experts = EXPERTS.get(family, USUAL_EXPERTS)
    config = transformers_config(family, experts, eos_token_id=None, **changes)
    # In the type from the start: a cast would round the rotary frequencies too.
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    fill(model)
    for block in moe_blocks(model):
        for tensor in (block.weight, block.bias, block.correction_bias):
            if tensor is not None:
                tensor.data[1] = tensor.data[0]
        if block.correction_bias is not None:  # checkpoints keep it in fp32
            block.gate.e_score_correction_bias = block.correction_bias.float()
    return model


def prompt(batch: int = 3, length: int = 12) -> dict[str, Tensor]:
    """A batch whose sequences are padded on the left, by 0, 2, 4, ... tokens."""
    torch.manual_seed(1)
    ids = torch.randint(1, 32, (batch, length))
    mask = torch.ones_like(ids)
    for row in range(batch):
        mask[row, : 2 * row] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


class Answer(NamedTuple):
    """What a model says."""

    logits: Tensor
    """Of the positions of a padded batch that are no padding, in fp32."""
    generated: Tensor
    """Of the tokens generated after it with the cache, in fp32."""
    tokens: Tensor


@torch.no_grad()
def answer(model: Any) -> Answer:
    """Logits of a left-padded batch, and of what the model generates after it."""
    given = prompt()
    logits = model(**given).logits.float()[given["attention_mask"] > 0]
    found = model.generate(
        **given,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        use_cache=True,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return Answer(logits, torch.stack(found.logits).float(), found.sequences)


@contextmanager
def applied(model: Any, name: str, **options: Any) -> Iterator[Any]:
    """The model with a router applied, which is removed at the end."""
    apply_router(model, name, **options)
    try:
        yield model
    finally:
        remove_router(model)


def difference(found: Answer, expected: Answer) -> float:
    """The largest difference of any logit; infinite where generated tokens differ."""
    if not torch.equal(found.tokens, expected.tokens):
        return float("inf")
    return max(float((a - b).abs().max()) for a, b in zip(found[:2], expected[:2], strict=True))


def typical_distance(found: Tensor, expected: Tensor) -> float:
    """Median over positions of the norm of the difference of their logits.

    A maximum would tell which positions run another expert below, where equal scores are rounded
    apart; that happens between any two ways of running the experts.
    """
    return float((found.float() - expected.float()).flatten(0, 1).norm(dim=1).median())


class Base(NamedTuple):
    """How a family with moebench's top-k differs from the untouched model, over 600 tokens."""

    other_experts: int
    """Choices of a token in a layer that run other experts, given the layer's own input."""
    choices: int
    tied: int
    """Choices whose last expert ties with one that is not chosen."""
    logits: float
    """Largest difference of any logit of an `Answer`."""
    eager_logits: float
    """The same of transformers' eager experts from its grouped ones."""
    distance: float
    """See `typical_distance`."""
    eager: float
    """The same of transformers' eager experts from its grouped ones."""


@functools.cache
def base_answer(family: str, dtype: str) -> tuple[Any, Answer]:
    """A tiny copy with the router of its own, and what it says with moebench's top-k."""
    model = tiny_model(family, DTYPES[dtype])
    with applied(model, "top-k"):
        return model, answer(model)


@torch.no_grad()
def base_difference(family: str, dtype: str) -> Base:
    """Compare moebench's top-k with the untouched model."""
    model, ours = base_answer(family, dtype)
    untouched, many = answer(model), torch.randint(1, 32, (20, 30), generator=seeded(2))
    inputs = router_inputs(model, many)
    own = [block.gate(x)[2] for block, x in zip(moe_blocks(model), inputs, strict=True)]
    grouped = model(many).logits
    model.set_experts_implementation("eager")
    eager, eagers = model(many).logits, answer(model)
    model.set_experts_implementation("grouped_mm")
    with applied(model, "top-k"):
        blocks, plugged = applied_router(model).blocks, model(many).logits
        found = [block.gate(x) for block, x in zip(blocks, inputs, strict=True)]
    ranked = [logits.float().sort(dim=1, descending=True).values for logits, *_ in found]
    k = EXPERTS.get(family, USUAL_EXPERTS)[1]
    return Base(
        sum(other_choices(r, e) for (_, r, _), e in zip(found, own, strict=True)),
        sum(len(x) for x in inputs),
        sum(int((scores[:, k - 1] == scores[:, k]).sum()) for scores in ranked),
        difference(ours, untouched),
        difference(eagers, untouched),
        typical_distance(plugged, grouped),
        typical_distance(eager, grouped),
    )


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def router_inputs(model: Any, ids: Tensor) -> list[Tensor]:
    """What each router reads of some tokens, as [tokens, hidden]."""
    inputs: list[Tensor] = []
    hooks = [
        block.gate.register_forward_pre_hook(lambda _, args: inputs.append(args[0].flatten(0, -2)))
        for block in moe_blocks(model)
    ]
    model(ids)
    for hook in hooks:
        hook.remove()
    return inputs


def other_choices(routing: Routing, expected: Tensor) -> int:
    """Tokens whose routing has other experts than expected."""
    found = routing.slots[1]
    if found.shape != expected.shape:
        return len(expected)
    return int((found.sort(dim=1).values != expected.sort(dim=1).values).any(1).sum())


@functools.cache
def router_difference(family: str, dtype: str, name: str) -> float:
    """The largest difference of a router at step 0 from moebench's top-k: see `difference`."""
    model, expected = base_answer(family, dtype)
    with applied(model, name):
        return difference(answer(model), expected)
