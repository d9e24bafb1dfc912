"""The Triton kernels in Triton's interpreter, on the CPU: every case, as one JSON object.

A program of its own, since TRITON_INTERPRET must be set before the kernels are imported, and
since Triton may have to come from a directory of its own (see `triton_install.py`).
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from unittest import mock

import reference
import torch
from torch import Tensor

from moebench.doctor.imitation.graphs import CUDAGraph
from moebench.experts.backends import load_backend
from moebench.experts.gpu import launch
from moebench.experts.gpu.launch import ragged_combine, ragged_down, ragged_up
from moebench.experts.gpu.tiles import TABLE, KernelTiles
from moebench.experts.gpu.tuned import ChosenTiles
from moebench.experts.weights import ExpertWeights
from moebench.model.decoder import Layer, StepMode, build_decoder
from moebench.model.flops import ForwardStep, count_flops
from moebench.routers.policy import policy
from moebench.routers.routing import Choice, Routing, build_routers
from moebench.routers.row_tiles import row_tiles
from moebench.spec.attention import Attention
from moebench.spec.gate import Gate
from moebench.spec.model import ModelSpec

NUM_EXPERTS = 5
RAGGED = [[1, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 0], [0, 0, 1]]


def slots(num_tokens: int, width: int, keep: Tensor | None = None) -> Routing:
    """Distinct random experts per token with random weights."""
    order = [torch.randperm(NUM_EXPERTS)[:width] for _ in range(num_tokens)]
    experts = torch.stack(order) if order else torch.zeros(0, width, dtype=torch.int64)
    return Routing.from_slots(torch.rand(num_tokens, width), experts, NUM_EXPERTS, keep)


def on(num_tokens: int, *experts: int) -> Routing:
    """Every token on the same experts."""
    chosen = torch.tensor([experts] * num_tokens)
    return Routing.from_slots(torch.rand(num_tokens, len(experts)), chosen, NUM_EXPERTS)


def bounded(keep: Tensor) -> Routing:
    """A ragged routing whose bound exceeds its assignments, with rubbish behind them."""
    experts = torch.stack([torch.randperm(NUM_EXPERTS)[: keep.shape[1]] for _ in keep])
    routing = Routing.bounded(Choice(torch.rand(keep.shape), experts, NUM_EXPERTS, keep))
    count = int(routing.tokens_per_expert.sum())
    tokens, weights = routing.token_indices.clone(), routing.weights.clone()
    tokens[count:], weights[count:] = 10**9, float("nan")
    return replace(routing, token_indices=tokens, weights=weights)


ROUTINGS: dict[str, Callable[[], Routing]] = {
    "fixed k": lambda: slots(7, 2),
    "ragged k, tokens without experts": lambda: slots(7, 3, torch.tensor(RAGGED) > 0),
    "all on one expert, several row tiles": lambda: on(150, 2),
    "first and last expert empty": lambda: on(7, 1, 3),
    "an expert of exactly one row tile": lambda: on(16, 4),
    "nothing kept": lambda: slots(7, 2, torch.zeros(7, 2, dtype=torch.bool)),
    "one token": lambda: slots(1, 3),
    "no tokens": lambda: slots(0, 2),
    "bound above the assignments": lambda: bounded(torch.tensor(RAGGED) > 0),
    "bound without assignments": lambda: bounded(torch.zeros(4, 2, dtype=torch.bool)),
}


TELLING = ("ragged k, tokens without experts", "all on one expert, several row tiles")


@dataclass(frozen=True)
class Shape:
    """Sizes of the experts; the first can be read by TMA, the second cannot."""

    hidden: int
    intermediate: int
    is_gated: bool = True
    num_experts: int = NUM_EXPERTS


SHAPES = {
    "tensor descriptors": Shape(72, 48),
    "pointers": Shape(67, 35),
    "two matrices": Shape(72, 48, is_gated=False),
    "two matrices, pointers": Shape(67, 35, is_gated=False),
}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
Name = tuple[str, str, str, int, int, int]
"""Routing, shape, type, rows of a tile, parts of the second sum, and whose tiles."""


def names() -> Iterator[Name]:
    """All routings with tensor descriptors in fp32; the telling ones in every other way."""
    for routing in ROUTINGS:
        yield routing, "tensor descriptors", "float32", 16, 1, 90
    for rows in TABLE[90]:
        for shape in SHAPES if rows in (16, 128) else list(SHAPES)[:2]:
            several = rows > 32 and shape in ("tensor descriptors", "pointers")
            yield TELLING[several], shape, "float32", rows, 1, 90
    for rows in (16, 64):
        yield TELLING[rows > 32], "tensor descriptors", "float32", rows, 4, 90
        for dtype in ("float16", "bfloat16"):
            yield TELLING[0], "tensor descriptors", dtype, rows, 2, 90
    for shape in ("tensor descriptors", "two matrices"):
        yield TELLING[1], shape, "float32", 128, 1, 100


ODD = {
    f"{experts} experts, {hidden} x {inner}, {tokens} tokens": (
        Shape(hidden, inner, num_experts=experts),
        tokens,
    )
    for experts, hidden, inner, tokens in (
        *((1, 130, 66, 40), (3, 72, 40, 9), (60, 8, 8, 40), (128, 136, 24, 5), (257, 8, 8, 9)),
        *((3, 130, 66, 1), (257, 72, 40, 0)),
    )
}
"""Experts that no power of two counts, and sizes that no tile divides."""


def model(shape: Shape) -> ModelSpec:
    return ModelSpec(
        name="tiny",
        source="made for tests",
        num_layers=1,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_experts=shape.num_experts,
        top_k=1,
        vocab_size=64,
        attention=Attention(kind="gqa", num_heads=4, num_kv_heads=2, head_dim=8),
        gate=Gate(score="softmax", renormalise=True),
        is_gated=shape.is_gated,
    )


def layer(
    x: Tensor, routing: Routing, weights: ExpertWeights, rows: int, parts: int, capability: int
) -> Iterator[Tensor]:
    """The three kernels with a tile of this capability, without and with a residual.

    Persistent programs are two, so that each has several tiles.
    """
    tiles = TABLE[capability][rows]
    tiles = KernelTiles(replace(tiles.up, depth_bytes=128), replace(tiles.down, depth_bytes=128))
    table = row_tiles(routing.tokens_per_expert, routing.num_assignments, rows).table
    places, factors = routing.slot_places(), routing.weights
    with (
        mock.patch.object(launch, "chosen_tiles", lambda *_: ChosenTiles(tiles)),
        mock.patch.object(launch, "INTERPRETED_MULTIPROCESSORS", 2),
    ):
        hidden = ragged_up(
            *(x, routing.token_indices, table, weights.gate_up, rows, weights.down.shape[2]),
            *(weights.gate_up_bias, weights.clamp[:2] if weights.clamp else ()),
        )
        outputs = ragged_down(hidden, table, weights.down, rows, parts, weights.down_bias)
    yield ragged_combine(outputs, places, factors, x, None, 1.0)
    yield ragged_combine(outputs, places, factors, x, x, 0.5)


def inputs(shape: Shape, num_tokens: int, dtype: torch.dtype) -> tuple[Tensor, ExpertWeights]:
    """Rows of a wider matrix, and random experts."""
    weights = ExpertWeights(model(shape), dtype)
    for parameter in weights.parameters():
        torch.nn.init.normal_(parameter, std=parameter.shape[2] ** -0.5)
    return torch.randn(num_tokens, 2 * shape.hidden).to(dtype)[:, : shape.hidden], weights


def double_sum(x: Tensor, routing: Routing, weights: ExpertWeights) -> Tensor:
    """The definition, of the assignments in front of a bound."""
    count = int(routing.tokens_per_expert.sum())
    exact = replace(
        routing,
        token_indices=routing.token_indices[:count],
        expert_indices=routing.expert_indices[:count],
        weights=routing.weights[:count].double(),
    )
    matrices = weights.gate_up.double(), weights.down.double()
    return reference.moe_layer(x.double(), exact, *matrices, weights.is_gated)


def error(y: Tensor, exact: Tensor) -> float:
    return float((y.double() - exact).norm()) / (float(exact.norm()) or 1.0)


@torch.no_grad()
def errors(name: Name) -> dict[str, float | bool]:
    """Relative error of the kernels and of the backend, and whether idle tokens got exact zeros."""
    torch.manual_seed(0)
    routing, shape = ROUTINGS[name[0]](), SHAPES[name[1]]
    x, weights = inputs(shape, routing.num_tokens, DTYPES[name[2]])
    exact = double_sum(x, routing, weights)
    count = int(routing.tokens_per_expert.sum())
    idle = torch.bincount(routing.token_indices[:count], minlength=routing.num_tokens) == 0
    found: dict[str, float | bool] = {}
    if routing.num_assignments:
        y, added = layer(x, routing, weights, *name[3:])
        found |= {"kernels": error(y, exact), "idle": bool((y[idle] == 0).all())}
        found["residual"] = error(added, x.double() + 0.5 * exact)
    if name[3:5] == (16, 1):
        y = load_backend("triton")(x, routing, weights)
        found |= {"backend": error(y, exact), "backend: idle": bool((y[idle] == 0).all())}
    return found


@torch.no_grad()
def odd_error(shape: Shape, num_tokens: int) -> float:
    """Relative error of the backend; two experts a token, where there are two."""
    torch.manual_seed(0)
    k = min(2, shape.num_experts)
    chosen = torch.stack([torch.randperm(shape.num_experts)[:k] for _ in range(num_tokens + 1)])
    routing = Routing.from_slots(torch.rand(num_tokens, k), chosen[:-1], shape.num_experts)
    x, weights = inputs(shape, num_tokens, torch.float32)
    return error(load_backend("triton")(x, routing, weights), double_sum(x, routing, weights))


@torch.no_grad()
def clamped_errors() -> dict[str, float]:
    """Relative error of experts with biases and gpt-oss's activation, beside the definition's."""
    torch.manual_seed(0)
    routing, spec = slots(20, 3), model(SHAPES["tensor descriptors"])
    spec = replace(spec, has_expert_bias=True, activation="clamped-swiglu")
    x, weights = torch.randn(20, spec.hidden_size), ExpertWeights(spec, torch.float32)
    for parameter in weights.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    exact = load_backend("loop")(x, routing, weights).double()
    tiles = ((16, 1, 90), (16, 2, 90), (128, 1, 90), (128, 1, 100))
    return {str(one): error(next(layer(x, routing, weights, *one)), exact) for one in tiles}


@torch.no_grad()
def is_summed_in_order() -> bool:
    """Whether combine is the sum of definition to the bit: of parts, then of slots, then added."""
    torch.manual_seed(0)
    outputs, x = torch.randn(2, 40, 72), torch.randn(3, 72)
    places, factors = torch.randperm(40)[:33].view(3, 11), torch.rand(40)
    places[0, 3:5] = -1
    expected = torch.zeros(3, 72)
    for slot in range(11):
        rows = outputs[0, places[:, slot]] + outputs[1, places[:, slot]]
        weighted = factors[places[:, slot], None] * rows
        expected += weighted.masked_fill(places[:, slot, None] < 0, 0)
    expected = x + 0.25 * expected
    return torch.equal(ragged_combine(outputs, places, factors, x, x, 0.25), expected)


@torch.no_grad()
def launches_of_a_layer() -> int:
    """Operations that the experts of a decoder layer and their residual dispatch."""
    spec, routing = model(SHAPES["tensor descriptors"]), slots(7, 2)
    x = torch.randn(7, 1, spec.hidden_size)
    layer = Layer(spec, 0, torch.float32)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    tiles = row_tiles(routing.tokens_per_expert, routing.num_assignments, 16)
    routing = replace(routing, row_tiles=tiles, places=routing.slot_places())
    graph, experts = CUDAGraph(), load_backend("triton")
    with graph:
        layer.mix(x, x.flatten(0, 1), routing, experts, lambda stage: None)
    names = [operation[0].name() for operation in graph.operations]
    return sum("ragged" in name or "view" not in name for name in names)


def flops(backend: str) -> tuple[float | None, float, bool]:
    """What fvcore and torch's counter see of an MoE layer, and whether they know all of it."""
    torch.manual_seed(0)
    spec = model(SHAPES["tensor descriptors"])
    decoder = build_decoder(spec, 1, torch.float32)
    routers = build_routers(policy("ada-k", {"mean_k": 1.5}), spec, 1, torch.float32)
    x = torch.randn(1, 7, spec.hidden_size)
    counted = count_flops(ForwardStep(decoder, routers, load_backend(backend), StepMode("moe")), x)
    return counted.fvcore, counted.torch, counted.complete


@torch.inference_mode()
def replay_errors() -> dict[str, float]:
    """Relative error of a decoder step that is captured on one input and replayed on another."""
    spec, found = model(SHAPES["tensor descriptors"]), {}
    for name, options in {
        "top-k": {},
        "ada-k": {"mean_k": 1.5},
        "adamoe": {"mean_k": 1.5},
        "rmoe": {},
    }.items():
        torch.manual_seed(0)
        decoder = build_decoder(spec, 2, torch.float32)
        routers = [r.eval() for r in build_routers(policy(name, options), spec, 2, torch.float32)]

        def step(x: Tensor, backend: str, bounded: bool = False) -> Tensor:
            mode = StepMode("decoder", bounded=bounded)
            return decoder(x, routers, load_backend(backend), mode)[0]  # noqa: B023

        x, graph = torch.randn(7, 1, spec.hidden_size), CUDAGraph()
        with graph:
            y = step(x, "triton", bounded=True)
        x.normal_()
        graph.replay()
        expected = step(x, "grouped")
        found[name] = float((y - expected).norm() / expected.norm())
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = {
        "errors": {" / ".join(map(str, name)): errors(name) for name in names()},
        "clamped": clamped_errors(),
        "odd": {name: odd_error(*case) for name, case in ODD.items()},
        "flops": {backend: flops(backend) for backend in ("triton", "grouped")},
        "replays": replay_errors(),
        "is summed in order": is_summed_in_order(),
        "launches": launches_of_a_layer(),
    }
    json.dump(found, sys.stdout)
