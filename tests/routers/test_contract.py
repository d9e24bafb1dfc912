"""What every registered router must be: the executed half does what the computed half declares.

The routers are found in the registry; a new one is tested by being there.
"""

import dataclasses
import warnings
from dataclasses import replace

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from moebench.routers.auxiliary import auxiliary_loss
from moebench.routers.operating_point import k_histogram, step_loads
from moebench.routers.policy import Policy, known_policies, policy
from moebench.routers.routing import Router, RouterState, Routing, build_routers, known_builders
from moebench.spec.gate import Gate
from moebench.spec.model import ModelSpec
from moebench.spec.ops import total_flops

STREAM = 4096
GATES = {
    "renormalised": (4, 2, Gate(score="softmax", renormalise=True)),
    "raw": (16, 4, Gate(score="softmax", renormalise=False)),
    "grouped": (16, 4, Gate("sigmoid", True, scale=2.5, num_groups=4, top_k_groups=2)),
    "grouped by maximum, biased, in fp32": (
        16,
        4,
        Gate("softmax", False, 16.0, 4, 2, "maximum", has_bias=True, router_dtype="float32"),
    ),
}
PUBLISHED = {"adamoe": {"num_null_experts": 8, "top_k": 3}}
"""Options for which a paper states its operating point."""
FORMS = [
    *((name, PUBLISHED.get(name, {})) for name in sorted(known_builders())),
    ("rmoe", {"residual": True}),
    ("rmoe", {"recurrence": "tanh", "shared_projector": True}),
    ("rmoe", {"recurrence": "none", "detached": True}),
    ("rmoe", {"num_null_experts": 8}),
    ("ada-k", {"weights": "paper"}),
    ("ada-k", {"max_k": 3}),
]


@pytest.fixture(params=sorted(GATES))
def model(request: pytest.FixtureRequest, tiny: ModelSpec) -> ModelSpec:
    num_experts, top_k, gate = GATES[request.param]
    return replace(tiny, num_experts=num_experts, top_k=top_k, gate=gate)


@pytest.fixture(params=FORMS, ids=lambda form: "-".join([form[0], *form[1]]))
def declared(request: pytest.FixtureRequest, model: ModelSpec) -> Policy:
    """The router's policy; one that imposes a mean gets one that every model here allows."""
    name, options = request.param
    fields = {field.name for field in dataclasses.fields(known_policies()[name])}
    mean = {"mean_k": 0.4 + model.top_k / 2} if "mean_k" in fields else {}
    return policy(name, options | mean)


@pytest.fixture
def routers(declared: Policy, model: ModelSpec) -> list[Router]:
    return [router.eval() for router in build_routers(declared, model, 2, torch.float32)]


def scores_of_layers(routers: list[Router], xs: list[Tensor]) -> list[Tensor]:
    """What each layer's router reads out of its input, states passed upwards."""
    state, scores = None, []
    for router, x in zip(routers, xs, strict=True):
        score, state = router.scores(x, state)
        scores.append(score)
    return scores


def route_layers(routers: list[Router], xs: list[Tensor]) -> list[Routing]:
    return [
        router.route(scores)
        for router, scores in zip(routers, scores_of_layers(routers, xs), strict=True)
    ]


def inputs(model: ModelSpec, tokens: int) -> list[Tensor]:
    return [torch.randn(tokens, model.hidden_size) for _ in range(2)]


def pairs(routing: Routing) -> list[tuple[int, int]]:
    return list(zip(routing.token_indices.tolist(), routing.expert_indices.tolist(), strict=True))


def test_every_policy_has_a_router_and_every_router_a_policy() -> None:
    assert set(known_builders()) == set(known_policies())


@pytest.mark.parametrize("tokens", [0, 1, 57])
def test_a_routing_is_well_formed(routers: list[Router], model: ModelSpec, tokens: int) -> None:
    for routing in route_layers(routers, inputs(model, tokens)):
        assert routing.num_tokens == tokens
        assert len(set(pairs(routing))) == routing.num_assignments, "no pair twice"
        assert all(0 <= token < tokens for token in routing.token_indices.tolist())
        assert all(0 <= expert < model.num_experts for expert in routing.expert_indices.tolist())
        assert (routing.expert_indices.diff() >= 0).all(), "sorted by expert"
        counted = torch.bincount(routing.expert_indices, minlength=model.num_experts)
        assert torch.equal(counted, routing.tokens_per_expert)
        assert routing.weights.isfinite().all()
        assert (routing.weights >= 0).all()
        assert routing.experts_per_token().sum() == routing.num_assignments


def test_evaluation_computes_no_auxiliary_loss_and_training_only_where_there_is_one(
    routers: list[Router], declared: Policy, model: ModelSpec
) -> None:
    xs = inputs(model, 8)
    assert all(routing.aux_loss is None for routing in route_layers(routers, xs))
    for router in routers:
        router.train()
    losses = [routing.aux_loss for routing in route_layers(routers, xs)]
    assert all((loss is None) == (declared.name == "balanced") for loss in losses)
    empty = [routing.aux_loss for routing in route_layers(routers, inputs(model, 0))]
    assert all(loss is None or auxiliary_loss([loss]).isfinite() for loss in empty)


def test_the_same_seed_gives_the_same_routing(declared: Policy, model: ModelSpec) -> None:
    xs, seen = inputs(model, 64), []
    for _ in range(2):
        torch.manual_seed(7)
        routing = route_layers(build_routers(declared, model, 2, torch.float32), xs)[1]
        seen.append((pairs(routing), routing.weights.tolist()))
    assert seen[0] == seen[1]


def test_routers_take_and_give_the_dtype_of_the_model(declared: Policy, model: ModelSpec) -> None:
    routers = build_routers(declared, model, 2, torch.bfloat16)
    xs = [x.bfloat16() for x in inputs(model, 9)]
    state: RouterState = None
    for router, x in zip(routers, xs, strict=True):
        routing, state = router(x, state)
        assert routing.weights.dtype == torch.bfloat16


def test_every_parameter_learns(routers: list[Router], declared: Policy, model: ModelSpec) -> None:
    """Through the weights or the auxiliary loss; in the residual RMoE G must first leave 0.

    Without recurrence the cell's matrix on the state meets zeros, and stays as it is. What a
    regression fits has no gradient.
    """
    for router in routers:
        router.train()
        if getattr(router, "weight", None) is not None and hasattr(router, "recurrent_gate"):
            nn.init.normal_(router.recurrent_gate)
    total = torch.zeros(())
    for routing in route_layers(routers, inputs(model, 64)):
        total = total + (routing.weights * torch.rand_like(routing.weights)).sum()
        if routing.aux_loss is not None:
            total = total + auxiliary_loss([routing.aux_loss])
    named = [pair for router in routers for pair in router.named_parameters()]
    if named:
        total.backward()
    is_recurrent = getattr(routers[0], "is_recurrent", True)
    for name, parameter in named:
        if not parameter.requires_grad:
            assert declared.name == "regression-k" and name.startswith("cost_")
            continue
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert (parameter.grad.abs().sum() > 0) == (is_recurrent or name != "cell.weight_hh")


def test_declared_parameters_are_those_of_the_modules(declared: Policy, model: ModelSpec) -> None:
    stack = nn.ModuleList(build_routers(declared, model, model.num_moe_layers, torch.float32))
    counted = sum(parameter.numel() for parameter in stack.parameters())
    assert counted == declared.parameters(model)


def test_declared_flops_are_those_that_two_counters_see(
    routers: list[Router], declared: Policy, model: ModelSpec
) -> None:
    """Per layer, 2 per multiply-add; fvcore counts 1."""
    x = inputs(model, 16)[0]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        routers[1](x)
    expected = total_flops(declared.ops(model, 16, "float32"))
    assert counter.get_total_flops() == expected

    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router = routers[1]

        def forward(self, x: Tensor) -> Tensor:
            return self.router.scores(x)[0]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        analysis = FlopCountAnalysis(Scores(), (x,)).unsupported_ops_warnings(False)
        assert 2 * analysis.total() == expected


class Launches(TorchDispatchMode):
    """Counts framework calls that do work, that is all but views and allocations."""

    VIEWS = {"view", "_unsafe_view", "expand", "slice", "t", "transpose", "unsqueeze", "squeeze"}
    VIEWS |= {"select", "detach", "alias", "split", "chunk", "unsafe_chunk", "as_strided", "empty"}

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = function.overloadpacket.__name__
        if name not in self.VIEWS:
            self.calls.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_declared_launches_are_those_executed(
    declared: Policy, model: ModelSpec, dtype: str
) -> None:
    """One layer in the middle of a stack, eager on a CPU; torch versions may differ by a few."""
    routers = build_routers(declared, model, 2, getattr(torch, dtype))
    xs = [x.to(getattr(torch, dtype)) for x in inputs(model, 16)]
    with torch.no_grad():
        _, state = routers[0].eval().scores(xs[0])
        with Launches() as launches:
            routers[1].eval()(xs[1], state)
    expected = sum(op.launches for op in declared.ops(model, 16, dtype))
    assert len(launches.calls) == pytest.approx(expected, abs=2), launches.calls


@pytest.mark.parametrize("skew", [0.0, 0.5])
def test_an_imposed_router_loads_experts_as_declared(
    routers: list[Router], declared: Policy, model: ModelSpec, skew: float
) -> None:
    """Over the stream: k, and how many experts steps of 1 and of 4 tokens touch.

    Counts are imposed one by one, so k differs from its declaration by rounding; AdaMoE's single
    null bias sets the mean, and random logits give a slightly wider spread than the declared
    family, a few percent of the tokens. Distinct experts are means over at least 1024 steps.
    """
    if declared.name == "balanced" and skew:
        pytest.skip("turns in order have no skew")
    point = declared.operating_point(model, skew)
    for router, scores in zip(
        routers, scores_of_layers(routers, inputs(model, STREAM)), strict=True
    ):
        router.impose(scores.detach(), point)
        routing = router.route(scores)
        assert routing.num_assignments / STREAM == pytest.approx(point.mean_k, rel=0.01)
        observed = dict(enumerate(k_histogram(routing)))
        variation = sum(
            abs(observed.get(k, 0.0) - (point.k_distribution[k : k + 1] or (0.0,))[0])
            for k in range(model.num_experts + 1)
        )
        nulls = getattr(router, "num_null_experts", 0)
        allowed = {"adamoe": 0.06, "rmoe": 0.12}[declared.name] if nulls else 0.006
        assert variation / 2 < allowed
        for tokens in (1, 4):
            expected = declared.load(model, tokens, point)
            steps = router.route_steps(scores, STREAM // tokens)
            touched = (step_loads(steps, STREAM // tokens) > 0).sum(1).double()
            assert float(touched.mean()) == pytest.approx(expected.distinct_experts, rel=0.03)
            # What others load within the groups of a token's gate is declared for equal popularity.
            within = 0.01 if declared.is_causal else 0.04
            assert steps.num_assignments / STREAM == pytest.approx(expected.mean_k, rel=within)


def test_later_tokens_do_not_change_earlier_routes(
    routers: list[Router], declared: Policy, model: ModelSpec
) -> None:
    if not declared.is_causal:
        pytest.skip("a token sees its whole step")
    xs = inputs(model, 12)
    changed = [torch.cat((x[:6], torch.randn_like(x[6:]))) for x in xs]
    for before, after in zip(
        route_layers(routers, xs), route_layers(routers, changed), strict=True
    ):
        early = {pair for pair in pairs(before) if pair[0] < 6}
        assert early == {pair for pair in pairs(after) if pair[0] < 6}


def test_tokens_may_come_one_by_one(
    routers: list[Router], declared: Policy, model: ModelSpec
) -> None:
    """Prefill and token-by-token decoding route alike: no router remembers the sequence."""
    if declared.name == "balanced" or not declared.is_causal:
        pytest.skip("a token's experts depend on the others of its step")
    xs = inputs(model, 6)
    together = route_layers(routers, xs)[1]
    for token in range(6):
        alone = route_layers(routers, [x[token : token + 1] for x in xs])[1]
        expected = [expert for t, expert in sorted(pairs(together)) if t == token]
        assert sorted(alone.expert_indices.tolist()) == expected
