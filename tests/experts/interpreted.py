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
from cuda_graphs import CUDAGraph
from torch import Tensor

from moebench.experts.backends import load_backend
from moebench.experts.gpu import launch
from moebench.experts.gpu.launch import ragged_down, ragged_up
from moebench.experts.gpu.tiles import KernelTiles, TilePhase, choose_tiles
from moebench.experts.weights import ExpertWeights
from moebench.model.decoder import StepMode, build_decoder
from moebench.model.flops import ForwardStep, count_flops
from moebench.routers.policy import policy
from moebench.routers.routing import Choice, Routing, build_routers
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


SHAPES = {
    "tensor descriptors": Shape(72, 48),
    "pointers": Shape(67, 35),
    "two matrices": Shape(72, 48, is_gated=False),
    "two matrices, pointers": Shape(67, 35, is_gated=False),
}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PHASES: tuple[TilePhase, ...] = ("decode", "prefill")


def names() -> Iterator[tuple[str, str, str, TilePhase]]:
    """All routings with tensor descriptors in fp32; the telling ones in every other way."""
    for shape in SHAPES:
        for phase in PHASES:
            for routing in ROUTINGS if shape == "tensor descriptors" else TELLING:
                yield routing, shape, "float32", phase
            for dtype in ("float16", "bfloat16"):
                yield TELLING[0], shape, dtype, phase


def model(shape: Shape) -> ModelSpec:
    return ModelSpec(
        name="tiny",
        source="made for tests",
        num_layers=1,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_experts=NUM_EXPERTS,
        top_k=2,
        vocab_size=64,
        attention=Attention(kind="gqa", num_heads=4, num_kv_heads=2, head_dim=8),
        gate=Gate(score="softmax", renormalise=True),
        is_gated=shape.is_gated,
    )


def layer(x: Tensor, routing: Routing, weights: ExpertWeights, phase: TilePhase) -> Tensor:
    """Both kernels with the tiles of a phase, which the backend itself chooses by the bound."""
    tiles = choose_tiles(90, phase, 2)
    per_expert = routing.tokens_per_expert
    tiles = KernelTiles(replace(tiles.up, depth_bytes=128), replace(tiles.down, depth_bytes=128))
    y, tokens = torch.zeros(x.shape), routing.token_indices
    with mock.patch.object(launch, "_tiles", lambda *_: tiles):
        hidden = ragged_up(x, tokens, per_expert, weights.gate_up, weights.down.shape[2])
        ragged_down(hidden, tokens, routing.weights, per_expert, weights.down, y)
    return y


@torch.no_grad()
def errors(name: tuple[str, str, str, TilePhase]) -> dict[str, float | bool]:
    """Relative error of the kernels and of the backend, and whether idle tokens got exact zeros."""
    torch.manual_seed(0)
    routing, shape, dtype = ROUTINGS[name[0]](), SHAPES[name[1]], DTYPES[name[2]]
    weights = ExpertWeights(model(shape), dtype)
    for parameter in weights.parameters():
        torch.nn.init.normal_(parameter, std=parameter.shape[2] ** -0.5)
    x = torch.randn(routing.num_tokens, 2 * shape.hidden).to(dtype)[:, : shape.hidden]
    count = int(routing.tokens_per_expert.sum())
    exact = reference.moe_layer(
        x.double(),
        replace(
            routing,
            token_indices=routing.token_indices[:count],
            expert_indices=routing.expert_indices[:count],
            weights=routing.weights[:count].double(),
        ),
        weights.gate_up.double(),
        weights.down.double(),
        shape.is_gated,
    )
    idle = torch.bincount(routing.token_indices[:count], minlength=routing.num_tokens) == 0
    found: dict[str, float | bool] = {}
    runs = {"kernels": layer(x, routing, weights, name[3])} if routing.num_assignments else {}
    if name[3] == "decode" and name[1] == "tensor descriptors":
        runs["backend"] = load_backend("triton")(x, routing, weights)
    for run, y in runs.items():
        size = float(exact.norm()) or 1.0
        found[run] = float((y.double() - exact).norm()) / size
        found[f"{run}: idle"] = bool((y[idle] == 0).all())
    return found


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
    found = {" / ".join(name): errors(name) for name in names()}
    counted = {backend: flops(backend) for backend in ("triton", "grouped")}
    found_in_graphs = replay_errors()
    json.dump({"errors": found, "flops": counted, "replays": found_in_graphs}, sys.stdout)
