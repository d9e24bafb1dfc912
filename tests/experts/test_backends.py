"""The contract: every backend that is here against the double sum, outputs and all gradients.

Backends that other packages bring are skipped where these are not installed; the slow test in
`test_adapters.py` installs them and runs this module again.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import reference
import torch
from experts.dispatched import Launches, Waits
from torch import Tensor

from moebench.experts.backends import execution, load_backend, takes_dtype, why_not
from moebench.experts.catalogue import EXPERT_BACKENDS, ExpertBackend
from moebench.experts.cpu.onednn import LEAST_ROWS
from moebench.experts.weights import ExpertWeights
from moebench.routers.routing import Routing
from moebench.routers.row_tiles import row_tiles
from moebench.routers.top_k.policy import flatten_op
from moebench.spec.load import ExpertLoad
from moebench.spec.model import ModelSpec
from moebench.spec.ops import expert_ops

NUM_TOKENS = 7


def slots(keep: Tensor, experts: Tensor | None = None) -> Routing:
    """A routing over 4 experts with distinct experts per token and random weights."""
    num_tokens, width = keep.shape
    if experts is None:
        experts = torch.stack([torch.randperm(4)[:width] for _ in range(num_tokens)])
    weights = torch.rand(num_tokens, width, dtype=torch.float64)
    return Routing.from_slots(weights, experts, 4, keep)


def everything(num_tokens: int, width: int = 2) -> Tensor:
    return torch.ones(num_tokens, width, dtype=torch.bool)


ROUTINGS: dict[str, Callable[[], Routing]] = {
    "fixed k": lambda: slots(everything(NUM_TOKENS)),
    "ragged k, some tokens without experts": lambda: slots(
        torch.tensor([[1, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 0], [0, 0, 1]])
        > 0
    ),
    "all on one expert": lambda: slots(everything(NUM_TOKENS, 1), torch.full((NUM_TOKENS, 1), 2)),
    "first and last expert empty": lambda: slots(
        everything(NUM_TOKENS), torch.tensor([[1, 2]] * NUM_TOKENS)
    ),
    "nothing kept": lambda: slots(~everything(NUM_TOKENS)),
    "one token": lambda: slots(everything(1, 3)),
    "one token without experts": lambda: slots(~everything(1)),
    "no tokens": lambda: slots(everything(0), torch.zeros(0, 2, dtype=torch.int64)),
}


def make_weights(model: ModelSpec, dtype: torch.dtype) -> ExpertWeights:
    weights = ExpertWeights(model, dtype)
    for parameter in weights.parameters():
        torch.nn.init.normal_(parameter, std=parameter.shape[2] ** -0.5)
    return weights


@pytest.fixture(params=sorted(EXPERT_BACKENDS))
def backend(request: pytest.FixtureRequest) -> ExpertBackend:
    if EXPERT_BACKENDS[request.param].weight_type is not None:
        pytest.skip("it rounds the weights: see test_quantised.py")
    why = why_not(request.param, torch.device("cpu"))
    if why is not None:
        pytest.skip(why)
    return EXPERT_BACKENDS[request.param]


def run(backend: ExpertBackend, x: Tensor, routing: Routing, weights: ExpertWeights) -> Tensor:
    return execution(backend.name)(x, routing, weights)


@pytest.fixture
def narrow(tiny: ModelSpec) -> ModelSpec:
    """Four experts of the smallest sizes that every backend takes."""
    return replace(tiny, intermediate_size=32)


@pytest.fixture(params=[True, False], ids=["three matrices", "two matrices"])
def model(request: pytest.FixtureRequest, backend: ExpertBackend, narrow: ModelSpec) -> ModelSpec:
    if backend.is_gated_only and not request.param:
        pytest.skip("experts of two matrices are beyond it")
    return replace(narrow, is_gated=request.param)


def exactly(backend: ExpertBackend) -> tuple[torch.dtype, float]:
    """The backend's widest type, and its rounding over sums of a few dozen products."""
    widest = getattr(torch, backend.dtypes[0])
    return widest, 1e-12 if widest == torch.float64 else 5e-6


@pytest.mark.parametrize("case", ROUTINGS)
def test_outputs_are_the_double_sum(backend: ExpertBackend, case: str, model: ModelSpec) -> None:
    dtype, tolerance = exactly(backend)
    routing, weights = ROUTINGS[case](), make_weights(model, dtype)
    x = torch.randn(routing.num_tokens, model.hidden_size, dtype=dtype)
    expected = reference.moe_layer(
        x.double(), routing, weights.gate_up.double(), weights.down.double(), model.is_gated
    )
    with torch.no_grad():
        y = run(backend, x, routing, weights)
    torch.testing.assert_close(y.double(), expected.detach(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("case", ROUTINGS)
def test_tokens_without_experts_get_exact_zeros(
    backend: ExpertBackend, case: str, narrow: ModelSpec
) -> None:
    routing, weights = ROUTINGS[case](), make_weights(narrow, torch.float32)
    x = torch.randn(routing.num_tokens, narrow.hidden_size)
    idle = routing.experts_per_token() == 0
    for mode in (torch.no_grad(), torch.enable_grad()):
        with mode:
            y = run(backend, x, routing, weights)
        assert torch.equal(y[idle], torch.zeros_like(y[idle]))
        assert y.abs().sum(1).bool().equal(~idle)


@pytest.mark.parametrize("case", ROUTINGS)
def test_all_gradients_are_those_of_the_double_sum(
    backend: ExpertBackend, case: str, model: ModelSpec
) -> None:
    if not backend.has_gradients:
        pytest.skip("forward only")
    dtype, tolerance = exactly(backend)
    routing, weights = ROUTINGS[case](), make_weights(model, dtype)
    x = torch.randn(routing.num_tokens, model.hidden_size, dtype=dtype)
    direction = torch.randn_like(x)

    def gradients(layer: Callable[..., Tensor]) -> list[Tensor]:
        leaves = [leaf.detach().clone().requires_grad_() for leaf in (x, routing.weights)]
        parameters = list(weights.parameters())
        y = layer(leaves[0], replace(routing, weights=leaves[1]))
        inputs = [*leaves, *parameters]
        if not y.requires_grad:
            return [torch.zeros_like(leaf) for leaf in inputs]
        found = torch.autograd.grad((y * direction).sum(), inputs, allow_unused=True)
        return [
            torch.zeros_like(leaf) if gradient is None else gradient
            for gradient, leaf in zip(found, inputs, strict=True)
        ]

    observed = gradients(lambda x, routing: run(backend, x, routing, weights))
    expected = gradients(
        lambda x, routing: reference.moe_layer(
            x.double(), routing, weights.gate_up.double(), weights.down.double(), model.is_gated
        )
    )
    tolerance *= 10  # sums of sums
    for one, other in zip(observed, expected, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("num_tokens", [1, NUM_TOKENS])
def test_rows_of_any_stride_are_accepted(
    backend: ExpertBackend, num_tokens: int, narrow: ModelSpec
) -> None:
    dtype, tolerance = exactly(backend)
    routing, weights = slots(everything(num_tokens)), make_weights(narrow, dtype)
    x = torch.randn(narrow.hidden_size, 2 * num_tokens, dtype=dtype).t()[::2]
    assert not x.is_contiguous() or num_tokens == 1
    expected = reference.moe_layer(
        x.double(), routing, weights.gate_up.double(), weights.down.double()
    )
    for mode in (torch.no_grad(), torch.enable_grad()):
        with mode:
            y = run(backend, x, routing, weights)
        torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)]
)
@pytest.mark.parametrize("case", ["fixed k", "ragged k, some tokens without experts", "one token"])
def test_narrow_types_stay_within_their_rounding(
    backend: ExpertBackend, dtype: torch.dtype, tolerance: float, case: str, narrow: ModelSpec
) -> None:
    # On the norm of the error: about four roundings, of 2 ** -8 (bf16) or 2 ** -11 (fp16) each.
    # Routing weights stay in float32, as routers give them.
    if not takes_dtype(backend.name, dtype):
        pytest.skip(f"does not take {dtype}")
    routing = ROUTINGS[case]() if case != "fixed k" else slots(everything(64))
    routing = replace(routing, weights=routing.weights.float())
    weights = make_weights(narrow, dtype)
    x = torch.randn(routing.num_tokens, narrow.hidden_size).to(dtype)
    exact = reference.moe_layer(
        x.double(), routing, weights.gate_up.double(), weights.down.double()
    )
    for mode in (torch.no_grad(), torch.enable_grad()):
        with mode:
            y = run(backend, x, routing, weights)
        assert y.dtype == dtype
        assert (y.double() - exact).norm() < tolerance * exact.norm()


def test_weights_that_have_changed_are_used(backend: ExpertBackend, narrow: ModelSpec) -> None:
    """Whatever a backend keeps of them must not outlive an optimiser's step."""
    routing, weights = slots(everything(NUM_TOKENS)), make_weights(narrow, torch.float32)
    x = torch.randn(NUM_TOKENS, narrow.hidden_size)
    with torch.no_grad():
        run(backend, x, routing, weights)
        weights.gate_up.mul_(0.5)
        weights.down[2] += 1.0
        y = run(backend, x, routing, weights)
        expected = reference.moe_layer(
            x.double(), routing, weights.gate_up.double(), weights.down.double()
        )
    torch.testing.assert_close(y.double(), expected, rtol=5e-6, atol=5e-6)


def test_weights_made_in_inference_mode_are_as_good(
    backend: ExpertBackend, narrow: ModelSpec
) -> None:
    routing, x = slots(everything(NUM_TOKENS)), torch.randn(NUM_TOKENS, narrow.hidden_size)
    weights = make_weights(narrow, torch.float32)
    with torch.inference_mode():
        others = make_weights(narrow, torch.float32)
        for theirs, ours in zip(others.parameters(), weights.parameters(), strict=True):
            theirs.copy_(ours)
        expected = run(backend, x, routing, weights)
        for _ in range(2):
            assert torch.equal(run(backend, x, routing, others), expected)


def test_inference_leaves_its_inputs_alone(backend: ExpertBackend, narrow: ModelSpec) -> None:
    routing, weights = slots(everything(NUM_TOKENS)), make_weights(narrow, torch.float32)
    x = torch.randn(NUM_TOKENS, narrow.hidden_size)
    before = [t.detach().clone() for t in (x, routing.weights, *weights.parameters())]
    with torch.no_grad():
        run(backend, x, routing, weights)
    after = (x, routing.weights, *weights.parameters())
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("name", EXPERT_BACKENDS)
def test_every_row_of_the_catalogue_names_an_execution(name: str) -> None:
    assert callable(execution(name))


@pytest.mark.parametrize("touched", [2, 3])
def test_declared_launches_are_those_dispatched(
    backend: ExpertBackend, touched: int, narrow: ModelSpec
) -> None:
    """Three matrices: the activation is SiLU and a product; an expert alone needs no joining.

    The routing has what a fused router gives: row tiles and places of slots.
    """
    experts = torch.arange(touched).repeat(NUM_TOKENS, 1)
    routing = slots(everything(NUM_TOKENS, touched), experts)
    tiles = row_tiles(routing.tokens_per_expert, routing.num_assignments, 16)
    routing = replace(
        routing, weights=routing.weights.float(), places=routing.slot_places(), row_tiles=tiles
    )
    weights = make_weights(narrow, torch.bfloat16)
    x = torch.randn(NUM_TOKENS, narrow.hidden_size).bfloat16()
    with torch.no_grad():
        run(backend, x, routing, weights)  # builds the layout of the weights
        fresh = replace(routing)
        with Launches() as launches:
            run(backend, x, fresh, weights)
    load = ExpertLoad.observed(routing.tokens_per_expert.tolist(), NUM_TOKENS)
    declared = expert_ops(narrow, load, "bfloat16", EXPERT_BACKENDS[backend.name])
    assert launches.count == sum(op.launches for op in declared)


def test_declared_waits_are_those_that_a_gpu_would_make(
    backend: ExpertBackend, narrow: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend.layout != "plain":
        pytest.skip("a processor's backend: there is nothing to wait for")
    experts = torch.stack([torch.arange(NUM_TOKENS) % 4, (torch.arange(NUM_TOKENS) + 1) % 4], 1)
    routing, weights = slots(everything(NUM_TOKENS), experts), make_weights(narrow, torch.bfloat16)
    routing = replace(routing, weights=routing.weights.bfloat16())
    x = torch.randn(NUM_TOKENS, narrow.hidden_size).bfloat16()
    with torch.no_grad():
        run(backend, x, routing, weights)  # builds the layout of the weights
    routing = replace(routing)
    read: list[Tensor] = []
    original = Tensor.tolist
    monkeypatch.setattr(Tensor, "tolist", lambda t: read.append(t) or original(t))
    with torch.no_grad(), Waits() as waits:
        run(backend, x, routing, weights)
    once, per_expert = backend.launches.waits
    assert waits.count + len(read) == once + per_expert * narrow.num_experts


@pytest.mark.parametrize("drops", [False, True])
def test_declared_waits_of_a_routing_are_those_that_a_gpu_would_make(drops: bool) -> None:
    keep = torch.rand(6, 2) > 0.5 if drops else None
    experts = torch.arange(12).view(6, 2) % 4
    with Waits() as waits:
        Routing.from_slots(torch.rand(6, 2), experts, 4, keep)
    assert waits.count == flatten_op(12.0, drops=drops).waits


def test_counts_do_not_wait_for_a_gpu() -> None:
    """On "meta", where a value cannot be asked for, as `bincount` does."""
    weights, experts = torch.empty(6, 2, device="meta"), torch.zeros(6, 2, dtype=int, device="meta")
    routing = Routing.from_slots(weights, experts, 4)
    assert routing.tokens_per_expert.shape == (4,)
    assert routing.experts_per_token().shape == (6,)
    with pytest.raises((NotImplementedError, RuntimeError)):
        torch.bincount(experts.flatten(), minlength=4)


def test_the_rows_that_packed_borrows_are_those_that_it_is_priced_with() -> None:
    assert EXPERT_BACKENDS["packed"].least_rows == LEAST_ROWS


def test_an_unknown_backend_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match="did you mean 'grouped'"):
        load_backend("groupd")


def test_a_backend_that_is_not_here_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match="sonicmoe.*does not run here: "):
        load_backend("sonicmoe", "cpu")
