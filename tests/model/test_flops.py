"""Closed form, fvcore and torch's counter must say the same, to the last FLOP."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from moebench.experts.backends import load_backend, why_not
from moebench.experts.catalogue import EXPERT_BACKENDS
from moebench.experts.weights import ExpertWeights
from moebench.model.attention import KVCache
from moebench.model.decoder import StepMode, build_decoder, training_loss
from moebench.model.flops import (
    ForwardStep,
    attended_pairs,
    count_flops,
    count_training_flops,
    torch_counter,
    trace_macs,
)
from moebench.routers.policy import known_policies, policy
from moebench.routers.routing import Routing, build_routers, known_builders
from moebench.spec.case import Workload
from moebench.spec.gate import Gate
from moebench.spec.layer import layer_ops, mean_over_windows
from moebench.spec.load import ExpertLoad
from moebench.spec.model import ModelSpec, load_model, scaled_down
from moebench.spec.ops import total_flops, training_ops

STEPS = [
    Workload("decode", "moe", batch=5),
    Workload("decode", "decoder", batch=1, context_length=9),
    Workload("decode", "decoder", batch=5, context_length=9),
    Workload("prefill", "moe", batch=2, sequence_length=7),
    Workload("prefill", "decoder", batch=2, sequence_length=7),
    Workload("prefill", "decoder", batch=1, sequence_length=3, context_length=4),
]


def observed_load(routing: Routing) -> ExpertLoad:
    return ExpertLoad.observed(routing.tokens_per_expert.tolist(), routing.num_tokens)


def closed_form(
    model: ModelSpec, workload: Workload, router: str, routings: Sequence[Routing]
) -> float:
    """FLOPs of all layers from the formulas and what each layer's router really did."""
    router_ops = policy(router, options_of(router)).ops(model, workload.num_tokens, "float32")
    total = 0.0
    for routing in routings:
        ops = layer_ops(
            model, workload, router_ops, observed_load(routing), EXPERT_BACKENDS["grouped"]
        )
        ops = mean_over_windows(ops, model, workload, len(routings))
        total += total_flops(training_ops(ops) if workload.phase == "train" else ops)
    return total


def options_of(router: str) -> dict[str, float]:
    """An adaptive router needs a mean k where no paper has one for the model."""
    return {"mean_k": 1.4} if "mean_k" in known_policies()[router].__dataclass_fields__ else {}


def assert_three_agree(
    model: ModelSpec, workload: Workload, router: str = "top-k", backend: str = "grouped"
) -> None:
    num_layers = 2
    decoder = build_decoder(model, num_layers, torch.float32)
    routers = build_routers(policy(router, options_of(router)), model, num_layers, torch.float32)
    for module in routers:
        module.eval()
    cache = None
    if workload.level == "decoder":
        capacity = workload.context_length + workload.sequence_length
        cache = KVCache(model.attention, (num_layers, workload.batch, capacity), torch.float32)
        cache.fill_random(workload.context_length, seed=0)
    x = torch.randn(workload.batch, workload.sequence_length, model.hidden_size)
    experts = load_backend(backend)
    mode = StepMode(workload.level, cache)
    with torch.no_grad():
        _, routings = decoder(x, routers, experts, mode)
    counted = count_flops(ForwardStep(decoder, routers, experts, mode), x)
    assert counted.unsupported == ()
    assert counted.complete
    expected = closed_form(model, workload, router, routings)
    assert (counted.fvcore, counted.torch) == (expected, expected)


@pytest.mark.parametrize("workload", STEPS, ids=lambda w: f"{w.level} {w.label}")
def test_all_three_agree_for_top_k(workload: Workload, tiny: ModelSpec) -> None:
    assert_three_agree(tiny, workload)


@pytest.mark.parametrize("backend", sorted(EXPERT_BACKENDS))
def test_all_three_agree_for_every_backend(backend: str, tiny: ModelSpec) -> None:
    why = why_not(backend, torch.device("cpu"))
    if why is not None:
        pytest.skip(why)
    assert_three_agree(tiny, STEPS[0], backend=backend)


@pytest.mark.parametrize(
    ("name", "workload"),
    [("olmoe-1b-7b", STEPS[2]), ("qwen1.5-moe-a2.7b", STEPS[4]), ("qwen3-30b-a3b", STEPS[2])],
)
def test_all_three_agree_on_published_architectures(name: str, workload: Workload) -> None:
    """Biases, norms of queries and keys, shared experts and their gate; 32 times narrower."""
    assert_three_agree(scaled_down(load_model(name), 32), workload)


@pytest.mark.parametrize("router", sorted(known_builders()))
def test_all_three_agree_for_every_router(router: str, tiny: ModelSpec) -> None:
    assert_three_agree(tiny, STEPS[2], router)


@pytest.mark.parametrize("context", [3, 9])
def test_a_new_position_sees_the_keys_of_its_window_only(context: int, tiny: ModelSpec) -> None:
    """The second of two layers looks back 5 tokens; its norms are LayerNorm, half of it rotates."""
    a = replace(tiny.attention, window=5, windowed_layers=(1,), rotary_dim=4)
    model = replace(tiny, attention=a, norm="layer")
    assert_three_agree(model, replace(STEPS[1], context_length=context))


@pytest.mark.parametrize(
    "gate",
    [
        Gate("sigmoid", True, 2.5, 2, 1, has_correction_bias=True, router_dtype="float32"),
        Gate("softmax", False, 16.0, 2, 1, "maximum"),
        Gate("softmax", True, has_correction_bias=True, has_bias=True),
    ],
    ids=["deepseek-v3", "deepseek-v2", "biases"],
)
@pytest.mark.parametrize("router", ["top-k", "ada-k", "adamoe"])
def test_all_three_agree_for_every_kind_of_gate(gate: Gate, router: str, tiny: ModelSpec) -> None:
    assert_three_agree(replace(tiny, gate=gate), STEPS[0], router)


def test_two_matrices_are_counted_as_two(tiny: ModelSpec) -> None:
    model = replace(tiny, is_gated=False, activation="relu2", shared_intermediate_size=24)
    assert_three_agree(model, STEPS[4])


@pytest.mark.parametrize("level", ["moe", "decoder"])
def test_a_training_step_is_three_forward_steps_by_torchs_counter(
    level: str, tiny: ModelSpec
) -> None:
    workload = Workload("train", level, batch=1, sequence_length=7)
    decoder = build_decoder(tiny, 2, torch.float32)
    routers = build_routers(policy("top-k"), tiny, 2, torch.float32)
    experts = load_backend("grouped")
    x, mode = torch.randn(1, 7, tiny.hidden_size), StepMode(level)
    _, routings = decoder(x, routers, experts, mode)

    def run_step() -> None:
        y, routings = decoder(x, routers, experts, mode)
        training_loss(y, routings, x).backward()

    counted = count_training_flops(ForwardStep(decoder, routers, experts, mode), x, run_step)
    assert counted.fvcore is None
    assert counted.complete
    assert counted.torch == closed_form(tiny, workload, "top-k", routings)


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 6), (4, 4), (4, 6)])
@pytest.mark.parametrize("is_causal", [True, False])
def test_pairs_that_attend_are_those_of_the_mask(queries: int, keys: int, is_causal: bool) -> None:
    mask = torch.ones(queries, keys, dtype=torch.bool)
    if is_causal:
        mask = torch.tensor(
            [[k <= keys - queries + q for k in range(keys)] for q in range(queries)]
        )
    assert attended_pairs(queries, keys, is_causal) == mask.sum()


class GroupedMatmul(nn.Module):
    """10 rows over 3 experts of 16 x 32."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 16, 32))

    def forward(self, x: Tensor) -> Tensor:
        offsets = torch.tensor([4, 4, 10], dtype=torch.int32)
        return functional.grouped_mm(x, self.weight, offs=offsets)


@torch.no_grad()
def test_grouped_mm_counts_its_rows_in_both_counters() -> None:
    module, x = GroupedMatmul(), torch.randn(10, 16)
    with torch_counter() as counter:
        assert trace_macs(module, x) == (10 * 16 * 32, ())
    assert counter.get_total_flops() == 2 * 10 * 16 * 32


@torch.library.custom_op("moebench_tests::hidden_matmul", mutates_args=())
def hidden_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """A matrix product that no counter can look into."""
    return x @ weight.t()


class Square(torch.autograd.Function):
    """A module whose matrix product no counter can look into."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x @ x.t()


def opaque(x: Tensor, routing: Routing, weights: ExpertWeights) -> Tensor:
    return x + hidden_matmul(x, weights.down[0].mm(weights.gate_up[0, : weights.down.shape[2]]))


def opaque_function(x: Tensor, routing: Routing, weights: ExpertWeights) -> Tensor:
    product: Tensor = Square.apply(x)  # type: ignore[no-untyped-call]
    return x + product.sum()


@pytest.mark.parametrize(
    ("experts", "name"),
    [(opaque, "moebench_tests::hidden_matmul"), (opaque_function, "prim::PythonOp.Square")],
)
def test_a_count_with_an_unknown_operation_is_incomplete_and_names_it(
    experts: object, name: str, tiny: ModelSpec
) -> None:
    decoder = build_decoder(tiny, 1, torch.float32)
    routers = build_routers(policy("top-k"), tiny, 1, torch.float32)
    routers[0].eval()
    counted = count_flops(
        ForwardStep(decoder, routers, experts, StepMode("moe")), torch.randn(1, 3, 32)
    )
    assert not counted.complete
    assert counted.unsupported == (name,)
