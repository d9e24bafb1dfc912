"""A cell as CUDA graphs: what is captured, what cannot be, and what is said of it."""

from dataclasses import replace

import pytest
import torch
from cuda_graphs import cuda
from runs import HARDWARE
from suite_cells import CELLS, bench, ready_cell

from moebench.doctor.imitation.graphs import CUDAGraph, Streams
from moebench.experts.weights import ExpertWeights, activation
from moebench.measure.graph import LEAST_RING
from moebench.routers.routing import Routing
from moebench.suite.budget import Allowed
from moebench.suite.caveats import cell_caveats
from moebench.suite.cell import ReadyCell
from moebench.suite.passes import observe
from moebench.suite.plan import Cell, Effort
from moebench.suite.prepare import captured, prepare_cell
from moebench.suite.suite_file import MeasurePlan
from moebench.terminal import Bar

__all__ = ["cuda"]


def static(x: torch.Tensor, routing: Routing, weights: ExpertWeights) -> torch.Tensor:
    """Experts that can be captured: every assignment up to the bound gets matrices of its own."""
    expert = routing.expert_indices.clamp(max=weights.num_experts - 1)
    is_kept = routing.expert_indices < weights.num_experts
    rows = x[routing.token_indices].unsqueeze(2)
    hidden = activation((weights.gate_up[expert] @ rows).squeeze(2), weights.down.shape[2])
    outputs = (weights.down[expert] @ hidden.unsqueeze(2)).squeeze(2)
    weighted = outputs * (routing.weights * is_kept).unsqueeze(1)
    return torch.zeros_like(x).index_add(0, routing.token_indices, weighted)


def asking(x: torch.Tensor, routing: Routing, weights: ExpertWeights) -> torch.Tensor:
    """Experts that wait for a value of the device."""
    routing.tokens_per_expert.max().item()
    return static(x, routing, weights)


def as_graph(cell: Cell) -> Cell:
    """The cell's baseline alone, planned as a graph."""
    baseline = replace(cell.baseline, launch="graph")
    return replace(cell, cases=(baseline,), policies=cell.policies[:1], baseline=baseline)


def test_replays_of_every_router_are_its_eager_steps(cuda: Streams) -> None:
    eager = ready_cell("decoder decode b16 context 64 bfloat16")
    replayed = captured(replace(eager, experts=static), eager.cases)
    assert replayed.not_captured is None
    assert len(replayed.graphs) == 5
    for case in eager.cases:
        for place in (0, 1, eager.num_steps + 77):
            expected = eager.step(case, place)
            torch.testing.assert_close(replayed.step(case, place), expected, rtol=1e-4, atol=1e-5)


def with_backend(ready: ReadyCell, backend: str) -> ReadyCell:
    baseline = replace(ready.cell.baseline, backend=backend)
    return replace(ready, cell=replace(ready.cell, baseline=baseline), experts=static)


def test_eager_decode_never_asks_the_device_where_the_experts_do_not() -> None:
    ready = ready_cell("decoder decode b16 context 64 bfloat16")
    waiting = with_backend(ready, "grouped")
    for case in ready.cases:
        with CUDAGraph() as step:
            y = with_backend(ready, "triton").step(case, 0)
        assert step.operations
        torch.testing.assert_close(waiting.step(case, 0), y, rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError, match="not permitted"), CUDAGraph():
        waiting.step(ready.cases[1], 0)


def test_a_bound_holds_no_memory_in_prefill() -> None:
    ready = ready_cell(next(key for key in CELLS if "prefill" in key))
    assert not with_backend(ready, "triton").mode().bounded


def test_where_one_router_cannot_be_captured_none_is(cuda: Streams) -> None:
    def asking_beyond_top_k(
        x: torch.Tensor, routing: Routing, weights: ExpertWeights
    ) -> torch.Tensor:
        return (asking if routing.num_assignments > 4 * len(x) else static)(x, routing, weights)

    ready = ready_cell("moe decode b16 context 64 bfloat16")
    ready = replace(ready, experts=asking_beyond_top_k)
    found = captured(ready, ready.cases)
    assert not found.graphs
    (caveat,) = [c for c in cell_caveats(found, ready.cases[0], 1.0) if c.kind == "not-captured"]
    assert "ada-k cannot be captured: RuntimeError: aten" in caveat.seen


def test_a_replayed_cell_has_a_ring_of_inputs() -> None:
    cell = CELLS["moe decode b16 context 64 bfloat16"]
    assert prepare_cell(bench(), as_graph(cell), 32).num_steps == LEAST_RING


@pytest.mark.parametrize("is_capturable", [True, False])
def test_a_measurement_says_how_its_steps_were_launched(is_capturable: bool, cuda: Streams) -> None:
    ready = replace(
        ready_cell("moe decode b16 context 64 bfloat16"),
        experts=static if is_capturable else asking,
    )
    ready = replace(ready, cell=as_graph(ready.cell), cases=ready.cases[:1])
    with Bar(1.0) as bar:
        effort = Effort(MeasurePlan(min_rounds=1), "off", bar)
        found = observe(ready, HARDWARE.cache, effort, lambda round: Allowed(0.1, 0.1), bar)
    (measurement,) = found.measurements.values()
    assert measurement.launch == ("graph" if is_capturable else "eager")
    assert bool(measurement.by_stage) is not is_capturable
    kinds = {caveat.kind for caveat in measurement.caveats}
    assert ("not-captured" in kinds) is not is_capturable
