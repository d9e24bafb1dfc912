"""A cell: every router sees the same stream at its operating point, in a fair order."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from suite_cells import CELLS, SUITE, bench, ready_cell

from moebench.experts import avx512, packed, triton
from moebench.experts.backends import why_not
from moebench.experts.catalogue import EXPERT_BACKENDS
from moebench.measure.clocks import StageTimer
from moebench.model.attention import GroupedQueryAttention, KVCache
from moebench.model.rotary import rotary_angles
from moebench.suite.caveats import cell_caveats
from moebench.suite.cell import (
    NotANumber,
    ReadyCell,
    balanced_order,
    width_divisor,
)
from moebench.suite.counting import count_case
from moebench.suite.forecast import case_ops
from moebench.suite.plan import Cell, cells, changed, runnable_cells
from moebench.suite.prepare import with_alternatives
from moebench.suite.untimed import untimed_passes


@pytest.mark.parametrize(
    "key", ["moe decode b16 context 64 bfloat16", "decoder decode b16 context 64 bfloat16"]
)
def test_every_router_is_at_its_operating_point_over_the_stream(key: str) -> None:
    ready = ready_cell(key)
    for case in ready.cases:
        point = case.case.operating_point
        load = case.load(ready.workload.num_tokens)
        assert load.mean_k == pytest.approx(point.mean_k, rel=0.01), case.case.router.title
        counts = np.array(load.tokens_per_expert)
        assert np.abs(counts / counts.mean() - 1).max() < 0.03, case.case.router.title
        assert sum(case.k_histogram) == pytest.approx(1)


def test_the_loads_that_are_stored_are_those_that_run() -> None:
    """The stream is looked at in wide batches and timed in narrow ones."""
    ready = ready_cell("decoder decode b1 context 64 bfloat16", 256)
    for case in ready.cases:
        for place in range(20):
            step = int(ready.order[place])
            with torch.inference_mode():
                _, routings = ready.bench.decoder(
                    ready.stream[step], case.routers, ready.experts, ready.mode()
                )
            for layer, routing in enumerate(routings):
                expected = case.tokens_per_expert[layer, step]
                assert routing.tokens_per_expert.tolist() == expected.tolist()


def test_a_stretch_of_the_order_has_the_mean_k_of_the_stream() -> None:
    ready = ready_cell("moe decode b1 context 64 bfloat16")
    for case in ready.cases:
        whole = case.load(1).mean_k
        assert case.load(1, ready.order[:40].tolist()).mean_k == pytest.approx(whole, rel=0.05)
        assert case.load(1, ready.order[:400].tolist()).mean_k == pytest.approx(whole, rel=0.005)


@given(st.integers(1, 60), st.integers(0, 9))
def test_an_order_visits_every_step_once(num_steps: int, seed: int) -> None:
    assignments = np.random.default_rng(seed).integers(1, 9, (3, num_steps)).astype(float)
    assert sorted(balanced_order(assignments, seed).tolist()) == list(range(num_steps))


def test_few_steps_touch_as_many_experts_as_the_stream() -> None:
    """Routers of one k differ in the experts of a step: 8 steps at batch 4 must not favour one.

    Two routers of k = 2 of 8, one of k = 1, and steps of 4 tokens each. By their assignments alone,
    which are all equal, the first 8 steps are a random sample: 9 % off for the worst router.
    """
    rng = np.random.default_rng(0)

    def distinct(k: int) -> list[float]:
        tokens = [[rng.choice(8, k, replace=False) for _ in range(4)] for _ in range(1024)]
        return [float(len({*np.concatenate(step)})) for step in tokens]

    work = np.array([distinct(k) for k in (2, 2, 1)])
    for seed in range(3):
        first = work[:, balanced_order(work, seed)[:8]].mean(axis=1)
        np.testing.assert_allclose(first, work.mean(axis=1), rtol=0.025)


def test_training_steps_leave_no_gradient_behind() -> None:
    ready = ready_cell("moe train 1x64 bfloat16", 256)
    (case, *_) = ready.cases
    ready.step(case, 0)
    experts = bench().decoder.get_parameter("layers.0.experts.down")
    assert experts.grad is not None and float(experts.grad.abs().sum()) > 0
    before = experts.detach().clone()
    ready.sgd(case)()
    assert torch.equal(experts, before)
    ready.discard_gradients(case)
    assert all(parameter.grad is None for parameter in bench().decoder.parameters())


def test_an_output_that_is_not_a_number_is_refused() -> None:
    ready = ready_cell("moe decode b16 context 64 bfloat16")
    y = ready.step(ready.cases[0], 0).clone()
    ready.check(y)
    y[3, 0, 5] = float("nan")
    with pytest.raises(NotANumber, match="1 of 1024 output elements are NaN or infinite"):
        ready.check(y)


@pytest.mark.parametrize("window", [0, 3, 40])
def test_alternatives_see_what_each_would_see_alone(window: int) -> None:
    attention = GroupedQueryAttention(SUITE.model, 0, torch.float32)
    attention.window = window
    cache = KVCache(SUITE.model.attention, (1, 3, 10), torch.float32)
    cache.fill_random(9, seed=1)
    rotary = rotary_angles(range(9, 10), SUITE.model.attention, torch.float32, bench().device)
    tokens = torch.randn(3, 4, SUITE.model.hidden_size)
    with torch.inference_mode():
        alone = [attention(tokens[:, [i]], rotary, cache) for i in range(4)]
        together = attention(tokens, rotary, with_alternatives(cache, 4))
    assert torch.allclose(together, torch.cat(alone, dim=1), atol=1e-6)


def test_caveats_say_when_the_weights_stay_in_the_cache() -> None:
    ready = ready_cell("moe decode b1 context 64 bfloat16")
    kinds = [caveat.kind for caveat in cell_caveats(ready, ready.cases[0], cache_bytes=1e9)]
    assert "warm-cache" in kinds
    assert "warm-cache" not in [
        c.kind for c in cell_caveats(ready, ready.cases[0], cache_bytes=1.0)
    ]


def test_cells_of_a_suite_are_told_apart() -> None:
    assert all(isinstance(cell, Cell) for cell in CELLS.values()) and len(CELLS) == 8


def test_a_suite_s_choice_that_cannot_run_gives_way_and_one_asked_for_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packed, "missing", lambda device: "there is no oneDNN")
    device = torch.device("cpu")
    found, (said,) = runnable_cells(tuple(CELLS.values()), device, SUITE.model)
    assert "there is no oneDNN" in said and "'grouped' runs" in said
    for cell in found:
        assert {case.backend for case in (*cell.cases, cell.baseline)} == {"grouped"}
        has_caveat = [caveat.kind for caveat in cell.caveats] == ["stand-in"]
        assert has_caveat == (cell.workload.phase != "train")
    with pytest.raises(ValueError, match="'packed' does not run here: there is no oneDNN"):
        runnable_cells(tuple(CELLS.values()), device, SUITE.model, is_asked=True)


def test_a_stand_in_that_cannot_run_gives_way_to_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (avx512, packed):
        monkeypatch.setattr(module, "missing", lambda device: "it is not here")
    asked = tuple(changed(cell, backend="avx512") for cell in CELLS.values())
    found, said = runnable_cells(asked, torch.device("cpu"), SUITE.model)
    assert [line.rsplit(";", 1)[1] for line in said] == [" 'packed' runs", *[" 'grouped' runs"] * 2]
    for cell in found:
        assert {case.backend for case in (*cell.cases, cell.baseline)} == {"grouped"}
        is_trained = cell.workload.phase == "train"  # `packed` does not train: it is left out
        assert [caveat.kind for caveat in cell.caveats] == ["stand-in"] * (1 if is_trained else 2)


def test_a_type_that_a_backend_does_not_take_is_a_reason_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packed, "missing", lambda device: None)
    monkeypatch.setattr(packed, "takes_dtype", lambda dtype: dtype == torch.float32)
    CPU = torch.device("cpu")
    with pytest.raises(ValueError, match="does not take bfloat16 on this machine"):
        runnable_cells(tuple(CELLS.values()), CPU, SUITE.model, is_asked=True)


@pytest.mark.skipif(why_not("packed", torch.device("cpu"), torch.float32) is not None, reason="no")
def test_a_second_copy_of_the_experts_is_counted_and_freed() -> None:
    (_, last) = bench().decoder.expert_weights()
    experts = sum(parameter.nbytes for parameter in last.parameters())
    bench().lay_out("packed")
    ready = ready_cell("moe decode b16 context 64 bfloat16")
    ready.step(ready.cases[0], 0)
    assert last.layout_bytes == experts
    bench().lay_out("grouped")
    assert last.layout_bytes == 0


@pytest.mark.parametrize(
    ("router", "backend", "expected"),
    [
        ("top-k", "grouped", "in every layer: expert backend 'grouped' 1 times"),
        ("ada-k", "grouped", "the routing 1 times and expert backend 'grouped' 1 times"),
        ("top-k", "loop", "expert backend 'loop' 8 times"),
        ("ada-k", "triton", None),
        ("top-k", "triton", None),
    ],
)
def test_eager_decode_on_a_gpu_says_how_often_the_host_waits(
    router: str, backend: str, expected: str | None
) -> None:
    ready = ready_cell("moe decode b1 context 64 bfloat16")
    own = next(one for one in ready.cases if one.case.router.name == router)
    own = replace(own, case=replace(own.case, backend=backend))
    on_gpu = replace(ready, bench=replace(ready.bench, device=torch.device("cuda")))

    def seen(cell: ReadyCell) -> list[str]:
        caveats = cell_caveats(cell, own, cache_bytes=1.0)
        return [caveat.seen for caveat in caveats if caveat.kind == "host-sync"]

    assert len(seen(on_gpu)) == (expected is not None)
    assert all(expected is not None and expected in line for line in seen(on_gpu))
    assert seen(ready) == []


def test_without_triton_a_gpu_runs_grouped_eagerly_and_the_record_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(triton, "missing", lambda device: "Triton is not installed")
    planned = cells(SUITE, "gpu")
    found, (said,) = runnable_cells(planned, torch.device("cuda"), SUITE.model)
    assert said == (
        "expert backend 'triton' does not run here: Triton is not installed; 'grouped' runs"
    )
    assert {case.launch for cell in planned for case in cell.cases} == {"graph", "eager"}
    for cell in found:
        assert {case.backend for case in (*cell.cases, cell.baseline)} == {"grouped"}
        assert {case.launch for case in (*cell.cases, cell.baseline)} == {"eager"}
        assert [caveat.kind for caveat in cell.caveats] == ["stand-in"]
    with pytest.raises(ValueError, match="'triton' does not run here: Triton is not installed"):
        runnable_cells(planned, torch.device("cuda"), SUITE.model, is_asked=True)


def test_experts_with_biases_give_way_to_a_backend_that_takes_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(triton, "missing", lambda device: None)
    biased = replace(SUITE.model, has_expert_bias=True)
    planned = cells(SUITE, "gpu")
    found, said = runnable_cells(planned, torch.device("cuda"), biased)
    assert not said and {cell.baseline.backend for cell in found} == {"triton"}
    row = replace(EXPERT_BACKENDS["triton"], takes_biases=False)
    monkeypatch.setitem(EXPERT_BACKENDS, "triton", row)
    found, (why,) = runnable_cells(planned, torch.device("cuda"), biased)
    assert "have biases or a clamped activation; 'grouped' runs" in why
    assert {cell.baseline.backend for cell in found} == {"grouped"}


@pytest.mark.skipif(
    why_not("packed", torch.device("cpu"), torch.float32) is not None, reason="oneDNN packs nothing"
)
def test_the_stages_of_a_slow_step_are_those_of_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    marked: list[str] = []

    class Listening(StageTimer):
        def mark(self, stage: str | None) -> None:
            marked.extend([stage] if stage else [])  # None: a start
            super().mark(stage)

    ready = ready_cell("moe decode b16 context 64 bfloat16")
    case = ready.cases[0]
    assert case.case.backend == "packed"  # whose FLOPs are counted while another runs
    ready.step(case, 0, Listening(ready.bench.device).mark)
    once = marked.copy()
    marked.clear()
    monkeypatch.setattr("moebench.suite.untimed.StageTimer", Listening)
    monkeypatch.setattr("moebench.suite.untimed.SLOW_STEP", 0.0)
    untimed_passes(ready, case)
    assert marked == once


@pytest.mark.parametrize(
    ("widths", "divisor"),
    [((4096, 14336, 0), 16), ((2880, 2880, 0), 8), ((2048, 768, 0), 16), ((64, 224, 0), 4)],
)
def test_narrow_widths_stay_multiples_of_8(widths: tuple[int, int, int], divisor: int) -> None:
    model = replace(
        SUITE.model,
        hidden_size=widths[0],
        intermediate_size=widths[1],
        shared_intermediate_size=widths[2],
    )
    assert width_divisor(model) == divisor


@pytest.mark.parametrize("key", ["moe decode b16 context 64 bfloat16", "moe train 1x64 bfloat16"])
def test_flops_are_counted_at_reduced_width_and_stated_at_full(key: str) -> None:
    ready = ready_cell(key, 256)
    for case in ready.cases:
        flops = count_case(ready, case)
        assert flops.width_divisor == 4
        # RMoE's zero state below the first layer needs no gradient, which is one small product.
        assert flops.torch == pytest.approx(flops.traced_closed_form, rel=0.02)
        assert flops.fvcore in (flops.torch, None)
        assert flops.traced_closed_form < flops.closed_form


def test_the_order_of_the_steps_is_no_part_of_the_first_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At batch 1 it takes longer than a step."""
    ready = replace(ready_cell("moe decode b1 context 64 bfloat16", 256))
    known: list[bool] = []
    step = ReadyCell.step

    def listening(self: ReadyCell, *arguments: object) -> torch.Tensor:
        known.append("order" in self.__dict__)
        return step(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(ReadyCell, "step", listening)
    untimed_passes(ready, ready.cases[0])
    assert all(known)


@pytest.mark.parametrize(("phase", "expected"), [("decode", [0.0]), ("prefill", [1.0])])
def test_a_routing_that_is_bounded_waits_for_nothing_and_another_for_its_length(
    phase: str, expected: list[float]
) -> None:
    """Of Ada-K on a GPU; in prefill a bound would take memory of tokens times experts."""
    for cell in cells(SUITE, "gpu"):
        if cell.workload.phase != phase:
            continue
        place = [case.router.name for case in cell.cases].index("ada-k")
        case, own = cell.cases[place], cell.policies[place]
        load = own.load(SUITE.model, cell.workload.num_tokens, case.operating_point)
        ops = case_ops(case, own, SUITE.model, load)
        assert case.backend == "triton"
        assert [op.waits for op in ops if op.waits] == [one for one in expected if one]
