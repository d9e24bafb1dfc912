"""The timed cases of `bench_checkpoint.py`: one checkpoint with transformers' experts, and ours.

Every case is a copy of the model that shares its weights. A step is a prefill of a batch, or one
token for each sequence of a batch from a cache that transformers keeps. Needs transformers.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from training_cases import IMPLEMENTATIONS, THEIRS

from moebench.experts.backends import why_not
from moebench.experts.catalogue import EXPERT_BACKENDS
from moebench.measure.latency import Visit
from moebench.measure.memory import available_memory, measure_memory
from moebench.model.flops import COUNTED_AS, torch_counter
from moebench.model.huggingface.apply import applied_router, apply_router
from moebench.model.huggingface.blocks import described, moe_blocks
from moebench.quality.losses import MeanK, Windows, plugged_routers, set_means
from moebench.records.measurement import Memory
from moebench.routers.ada_k.module import AdaKRouter
from moebench.routers.gate import random_weight
from moebench.routers.operating_point import impose_counts
from moebench.spec.case import OperatingPoint
from moebench.spec.load import geometric_k

BACKENDS = ("grouped", "avx512", "packed", "triton")
"""Backends of ours that are measured where they run."""
OURS = "moebench"
Step = Callable[[int], Tensor]
"""Runs one step of a workload's stream, by its place; the last logits of each sequence."""


@dataclass(frozen=True, eq=False)
class Workload:
    """A stream of steps that every case runs."""

    name: str
    make: Callable[[Any], Step]
    """The steps of a model."""
    num_steps: int
    tokens_per_step: int


def prefill(ids: Tensor, batch: int) -> Workload:
    """Batches of whole sequences, [sequences, length], from an empty cache; the last logits."""
    batches = ids.split(batch)

    def make(model: Any) -> Step:
        return lambda place: model(
            input_ids=batches[place], use_cache=False, logits_to_keep=1
        ).logits[:, -1]

    batch, length = batches[0].shape
    return Workload(f"prefill {batch} x {length}", make, len(batches), batch * length)


def decode(ids: Tensor, context: int) -> Workload:
    """One token after another of [batch, context + steps], each batch from its cache."""
    batch, length = ids.shape
    name = f"decode, batch {batch}, context {context}"
    return Workload(name, lambda model: Decoding(model, ids, context), length - context, batch)


class Decoding:
    """The next token of every sequence, at any place, from the cache of those before it."""

    def __init__(self, model: Any, ids: Tensor, context: int) -> None:
        self.model, self.ids, self.context = model, ids, context
        with torch.no_grad():
            made = model(input_ids=ids, use_cache=True, logits_to_keep=1)
        self.whole = made.past_key_values
        self.cache = copy.deepcopy(self.whole)

    def __call__(self, place: int) -> Tensor:
        """Logits [batch, vocabulary] after the token at a place."""
        length = self.context + place
        if self.cache.get_seq_length() < length:
            self.cache = copy.deepcopy(self.whole)
        if (more := self.cache.get_seq_length() - length) > 0:
            self.cache.crop(-more)
        logits: Tensor = self.model(
            input_ids=self.ids[:, length : length + 1],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        return logits[:, -1]


@dataclass(frozen=True, eq=False)
class Case:
    """A model as one case runs it."""

    model: Any
    counted: Any
    """The model whose FLOPs are its own: of a kernel that counters cannot look into, another."""


def cases_of(
    model: Any, windows: Windows, mean_k: float, backends: Sequence[str] | None
) -> tuple[dict[str, Case], dict[str, str]]:
    """Cases by name; and those that do not run here, with the reason.

    Args:
        windows: [windows, length + 1], the tokens that adaptive routers are brought to `mean_k` on.
        backends: of ours; None: those of `BACKENDS` that run here.
    """
    cases, skipped = {}, {}
    for implementation in IMPLEMENTATIONS:
        theirs = sharing_copy(model)
        theirs.set_experts_implementation(implementation)
        cases[f"{THEIRS}, {implementation}"] = Case(theirs, theirs)
    for backend in backends or BACKENDS:
        if why := why_not(backend, model.device, model.dtype):
            skipped[f"{OURS}, {backend}"] = f"not run: {why}"
            continue
        for router, options in _routers(described(model).top_k).items():
            ours = _applied(model, router, options, backend)
            _bring(ours, router, windows, mean_k)
            counted = ours
            if EXPERT_BACKENDS[backend].hides_flops:
                counted = _applied(model, router, options, COUNTED_AS)
                _bring(counted, router, windows, mean_k)
            title = router if router == "top-k" else f"{router} at {mean_k:g}"
            cases[f"{OURS}, {backend}, {title}"] = Case(ours, counted)
    return cases, skipped


def sharing_copy(model: Any) -> Any:
    """A copy of a model with the same tensors, of which nothing is held twice."""
    tensors = (*model.parameters(), *model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def _routers(top_k: int) -> dict[str, dict[str, Any]]:
    """Routers and their options; no token runs more than the model's own k."""
    return {"top-k": {}, "skip": {}, "ada-k": {"max_k": top_k}}


def _applied(model: Any, router: str, options: Mapping[str, Any], backend: str) -> Any:
    ours = sharing_copy(model)
    apply_router(ours, router, expert_backend=backend, **options)
    return ours


def _bring(model: Any, router: str, windows: Windows, mean_k: float) -> None:
    """Bring an applied router to a mean k, in every layer."""
    if router == "skip":
        set_means(model, windows, mean_k)
    elif router == "ada-k":
        spread_counts(model, windows, mean_k)


@torch.no_grad()
def spread_counts(model: Any, windows: Windows, mean_k: float) -> None:
    """Give an untrained Ada-K random allocators, and biases that give counts a mean over tokens.

    What they cost is Ada-K's; which tokens get how many experts says nothing.
    """
    applied = applied_router(model)
    distribution = geometric_k(mean_k, applied.model.top_k)
    point = OperatingPoint(distribution, "imposed", "tests/bench_checkpoint.py")
    torch.manual_seed(0)

    def impose(place: nn.Module, inputs: tuple[Any, ...]) -> None:
        router = place.router
        assert isinstance(router, AdaKRouter)
        made = random_weight(*router.allocator.shape, router.allocator.dtype)
        router.allocator.copy_(made)
        scores, _ = router.scores(inputs[0])
        router.count_bias.zero_()
        impose_counts(router.allocator_logits(scores), router.count_bias, point)

    hooks = [place.register_forward_pre_hook(impose) for place in plugged_routers(model)]
    try:
        ids = torch.from_numpy(windows[:, :-1]).to(model.device)
        model.base_model(input_ids=ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()


def visit_of(step: Step, num_steps: int) -> Visit:
    """Steps of a stream that starts again at its end."""

    @torch.no_grad()
    def visit(first_step: int, count: int) -> None:
        for place in range(first_step, first_step + count):
            step(place % num_steps)

    return visit


@torch.no_grad()
def flops_per_token(step: Step, workload: Workload) -> float:
    """FLOPs of a token over the whole stream, counted while it runs."""
    with torch_counter() as counter:
        for place in range(workload.num_steps):
            step(place)
    return counter.get_total_flops() / (workload.num_steps * workload.tokens_per_step)


@torch.no_grad()
def mean_k_of(model: Any, step: Step, workload: Workload) -> float:
    """Experts a token over the whole stream, mean over layers."""
    with MeanK(model) as mean:
        for place in range(workload.num_steps):
            step(place)
    return float(np.mean(mean.by_layer()))


def peak_memory(model: Any, step: Step) -> Memory:
    """Peak memory of one step, beyond weights and cache."""
    run = visit_of(step, 1)
    run(0, 1)
    weights = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    cache = 0.0
    if isinstance(step, Decoding):
        kept = [t for layer in step.cache.layers for t in (layer.keys, layer.values)]
        cache = float(sum(t.numel() * t.element_size() for t in kept))
    return measure_memory(lambda: run(0, 1), model.device, float(weights), cache)


def too_large(model: Any, case: str, tokens: int) -> str:
    """Why a case cannot be run on so many tokens at once; empty where it can.

    batched_mm copies the weights of its expert for every assignment.
    """
    if case != f"{THEIRS}, batched_mm":
        return ""
    spec = described(model)
    own = sum(p.numel() * p.element_size() for p in moe_blocks(model)[0].experts.parameters())
    needed = tokens * spec.top_k * own / spec.num_experts
    free = available_memory(model.device)
    if needed <= 0.8 * free:
        return ""
    return f"not run: it needs about {needed / 1e9:.0f} GB, {free / 1e9:.0f} GB are free"
