"""The routing kernels in Triton's interpreter, on the CPU: every case against torch, as JSON.

A program of its own, since TRITON_INTERPRET must be set before the kernels are imported, and
since Triton may have to come from a directory of its own (see `triton_install.py`).
"""

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from routers.test_contract import Launches
from torch import Tensor

from moebench.experts.backends import execution
from moebench.model.decoder import StepMode, build_decoder
from moebench.routers.gpu import launch
from moebench.routers.policy import policy
from moebench.routers.routing import Router, Routing, build_routers
from moebench.routers.row_tiles import row_tiles
from moebench.spec.attention import Attention
from moebench.spec.gate import Gate
from moebench.spec.model import ModelSpec

HIDDEN = 16
SOFTMAX = Gate(score="softmax", renormalise=True)
GATES = {
    "softmax": SOFTMAX,
    "raw": Gate(score="softmax", renormalise=False, scale=2.5),
    "sigmoid": Gate(score="sigmoid", renormalise=True, scale=2.5, has_correction_bias=True),
    "softmax with correction": Gate("softmax", False, has_correction_bias=True),
    "fp32": Gate(score="softmax", renormalise=True, router_dtype="float32"),
    "groups": Gate("sigmoid", True, num_groups=5, top_k_groups=3, has_correction_bias=True),
    "groups by maximum": Gate(
        "softmax", False, num_groups=5, top_k_groups=3, group_score="maximum"
    ),
}


@dataclass(frozen=True)
class Case:
    """A router over a number of tokens."""

    router: str
    num_tokens: int
    num_experts: int = 5
    top_k: int = 2
    gate: str = "softmax"
    inputs: str = "normal"
    dtype: str = "float32"
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        numbers = f"{self.num_tokens} tokens, {self.num_experts} experts, k {self.top_k}"
        options = "".join(f", {key} {value}" for key, value in self.options)
        kind = f"{self.gate}, {self.inputs}, {self.dtype}"
        return f"{self.router}{options}, {numbers}, {kind}"


MAX_4 = (("max_k", 4), ("mean_k", 2.5))
ADAPTIVE: dict[str, tuple[tuple[str, Any], ...]] = {
    "ada-k": (("mean_k", 1.6),),
    "adamoe": (("mean_k", 1.2),),
    "skip": MAX_4,
    "top-p": MAX_4,
    "entropy-k": MAX_4,
    "random-k": MAX_4,
    "regression-k": MAX_4,
}
OTHERS: dict[str, tuple[tuple[str, Any], ...]] = {
    "top-k": (),
    "fixed-k": (("k", [2]),),
    "rmoe": (),
    "oea": (("own_k", 1),),
    "balanced": (),
}


def cases() -> Iterator[Case]:
    """Every router; sizes, ties, gates and dtypes with the routers that tell most."""
    for router, options in (ADAPTIVE | OTHERS).items():
        yield Case(router, 7, num_experts=12, options=options)
        yield Case(router, 40, num_experts=128, options=options)
    for router in ("top-k", "ada-k", "adamoe"):
        options = ADAPTIVE.get(router, ())
        for num_experts in (1, 3, 60, 257):
            own = (("mean_k", 1.0),) if num_experts == 1 and options else options
            yield Case(router, 7, num_experts, min(2, num_experts), options=own)
        yield Case(router, 1, options=options)
        yield Case(router, 0, options=options)
        yield Case(router, 1100, options=options)
        yield Case(router, 40, inputs="equal", options=options)
        yield Case(router, 40, 60, 4, inputs="ties", dtype="bfloat16", options=options)
        yield Case(router, 7, 60, 4, inputs="not a number", options=options)
        for gate in GATES:
            yield Case(router, 40, 60, 4, gate, options=options)
    yield Case("top-k", 33, 3, 3)
    yield Case("oea", 1100, options=OTHERS["oea"])
    yield Case("oea", 40, 60, 4, "groups", options=OTHERS["oea"])


CELLS: dict[str, Case] = {
    "gru": Case("rmoe", 20, 12, options=(("state_size", 24),)),
    "gru, 16 bits": Case("rmoe", 20, 12, dtype="bfloat16", options=(("state_size", 32),)),
    "gru, logits in fp32": Case("rmoe", 3, 5, gate="fp32", dtype="bfloat16"),
    "residual": Case("rmoe", 7, 5, options=(("residual", True), ("state_size", 8))),
    "tanh": Case("rmoe", 7, 5, options=(("recurrence", "tanh"), ("state_size", 24))),
    "no recurrence": Case("rmoe", 7, 5, options=(("recurrence", "none"), ("state_size", 24))),
    "null experts": Case("rmoe", 7, 5, options=(("num_null_experts", 3), ("state_size", 24))),
    "no tokens": Case("rmoe", 0),
}
"""Forms of RMoE's cell."""


def model(case: Case) -> ModelSpec:
    return ModelSpec(
        name="tiny",
        source="made for tests",
        num_layers=2,
        hidden_size=HIDDEN,
        intermediate_size=8,
        num_experts=case.num_experts,
        top_k=case.top_k,
        vocab_size=64,
        attention=Attention(kind="gqa", num_heads=4, num_kv_heads=2, head_dim=8),
        gate=GATES[case.gate],
    )


def scores_of(case: Case, router: Router) -> Tensor:
    """Scores of normal inputs; "equal" ones make every token alike, "ties" equal columns."""
    x = torch.randn(case.num_tokens, HIDDEN).to(getattr(torch, case.dtype))
    scores = router.scores(x)[0]
    if case.inputs == "equal":
        return scores[:1].expand(scores.shape).contiguous()
    if case.inputs == "ties":
        return (scores * 2).round() / 2
    if case.inputs == "not a number":
        scores[1:3, ::2] = torch.nan
    return scores


def set_apart(router: Router, case: Case) -> None:
    """Biases and thresholds near an operating point; whether they are at it does not matter."""
    point = policy(case.router, dict(case.options)).operating_point(model(case))
    x = torch.randn(2048, HIDDEN).to(getattr(torch, case.dtype))
    with contextlib.suppress(ValueError):
        router.impose(router.scores(x)[0], point)


@torch.inference_mode()
def differences(case: Case) -> list[str]:
    """What of the kernels' routing is not torch's; empty where all is."""
    torch.manual_seed(1)
    dtype = getattr(torch, case.dtype)
    router = build_routers(policy(case.router, dict(case.options)), model(case), 2, dtype)[1]
    router.eval().requires_grad_(False)
    if case.router in ADAPTIVE and case.num_experts > 1:
        set_apart(router, case)
    elif hasattr(router, "selection_bias"):
        router.selection_bias += 0.01 * torch.randn(len(router.selection_bias))
    scores = scores_of(case, router)
    launch.interprets = True
    found = [router.route(scores, bounded=True, dtype=dtype) for _ in range(2)]
    launch.interprets = False
    expected = router.route(scores, bounded=True, dtype=dtype)
    wrong = [name for again in found for name in compared(again, expected, case)]
    if case.num_tokens and found[0].row_tiles is None:
        wrong.append("not by the kernel")
    if router.progress.any():
        wrong.append("progress")
    return wrong


def compared(found: Routing, expected: Routing, case: Case) -> Iterator[str]:
    """Names of the parts that differ."""
    count = int(expected.tokens_per_expert.sum())
    if case.inputs == "not a number":
        places = found.slot_places()
        total = int(found.tokens_per_expert.sum())
        if not (int(places.min()) >= -1 and int(places.max()) < total):
            yield "places"
        if not bool((found.token_indices < case.num_tokens).all()):
            yield "token_indices"
        return
    for name in ("tokens_per_expert", "token_indices", "expert_indices"):
        own, other = getattr(found, name), getattr(expected, name)
        if len(own) != len(other):
            yield f"{name}: length"
        end = None if name == "tokens_per_expert" else count
        if not torch.equal(own[:end], other[:end]):
            yield name
    wanted = found.num_experts, 0, 0
    behind = found.expert_indices[count:], found.weights[count:], found.token_indices[count:]
    if case.num_tokens and found.row_tiles is not None:
        if not all(bool((x == y).all()) for x, y in zip(behind, wanted, strict=True)):
            yield "behind"
        rows = found.row_tiles.rows
        table = row_tiles(expected.tokens_per_expert, expected.num_assignments, rows).table
        if not torch.equal(found.row_tiles.table, table):
            yield "row tiles"
    if not torch.equal(found.slot_places(), expected.slot_places()):
        yield "places"
    tolerance = 1e-6 if case.dtype == "float32" else 8e-3
    weights = found.weights[:count].float(), expected.weights[:count].float()
    if found.weights.dtype != expected.weights.dtype:
        yield "dtype"
    elif not torch.allclose(*weights, rtol=tolerance, atol=1e-9):
        yield f"weights: {float((weights[0] / weights[1] - 1).abs().max()):.1e}"


@torch.inference_mode()
def cell_errors(case: Case) -> dict[str, float]:
    """Largest errors of RMoE's logits and states in two layers, relative to their size."""
    torch.manual_seed(1)
    dtype = getattr(torch, case.dtype)
    routers = build_routers(policy(case.router, dict(case.options)), model(case), 2, dtype)
    for router in routers:
        router.eval().requires_grad_(False)
        router.recurrent_gate.copy_(torch.randn(router.recurrent_gate.shape))
    x, errors = torch.randn(2, case.num_tokens, HIDDEN).to(dtype), {"logits": 0.0, "state": 0.0}
    state, own_state = None, None
    for router, inputs in zip(routers, x, strict=True):
        launch.interprets = True
        own, own_state = router.scores(inputs, own_state)
        launch.interprets = False
        expected, state = router.scores(inputs, state)
        for name, found, wanted in (("logits", own, expected), ("state", own_state, state)):
            assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
            error = (found.double() - wanted.double()).norm() / (wanted.double().norm() + 1e-9)
            errors[name] = max(errors[name], float(error))
    return errors


LAYER_ROUTERS = ("top-k", "ada-k", "adamoe", "rmoe")


@torch.no_grad()
def layer_launches(name: str) -> list[str]:
    """Launches of a bounded layer with our expert kernels, its norm counted as one."""
    spec = model(Case(name, 7, 4))
    decoder = build_decoder(spec, 2, torch.bfloat16, "cpu")
    options = dict(ADAPTIVE.get(name, ()))
    routers = build_routers(policy(name, options), spec, 2, torch.bfloat16)
    x, experts = torch.randn(7, 1, HIDDEN).bfloat16(), execution("triton")
    for router in routers:
        router.eval().requires_grad_(False)

    def step() -> None:
        decoder(x, routers, experts, StepMode("moe", bounded=True))

    launch.interprets = True
    step()
    with Launches() as launches:
        step()
    launch.interprets = False
    with Launches() as of_norm:
        decoder.layer(0).moe_norm(x)
    calls, norm = launches.calls, of_norm.calls
    first = next(place for place in range(1, len(calls)) if calls[place:][: len(norm)] == norm)
    assert calls[: len(norm)] == norm
    layers = ["norm", *calls[len(norm) : first]], ["norm", *calls[first + len(norm) :]]
    assert len(layers[0]) <= len(layers[1])
    return layers[1]


if __name__ == "__main__":
    torch.set_num_threads(1)
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    found = {case.name: differences(case) for case in cases() if wanted in case.name}
    cells = {name: cell_errors(case) for name, case in CELLS.items() if wanted in name}
    layers = {name: layer_launches(name) for name in LAYER_ROUTERS}
    json.dump({"routers": found, "cells": cells, "layers": layers}, sys.stdout)
