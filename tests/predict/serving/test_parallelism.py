"""How GPUs share a model: the meaning of --gpus, tokens dispatched once, dense models, drafts."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moebench.predict.attention.mla_products import MlaBlockCalls
from moebench.predict.serving.choices import exchange_of
from moebench.predict.serving.deployment import Deployment
from moebench.predict.serving.draft import Draft
from moebench.predict.serving.memory import rank_parameters
from moebench.predict.serving.mla import mla_block
from moebench.predict.serving.no_router import NO_ROUTER, baseline
from moebench.predict.serving.overlap import best_chunks, exposed
from moebench.predict.serving.parallelism import EXCHANGES, Parallelism, parallelism_of
from moebench.predict.serving.prices import kernel_prices, ops_price
from moebench.predict.serving.ranks import most_loaded_rank
from moebench.predict.serving.speedup import speedups
from moebench.predict.serving.step import StepPrice, Steps, step_price
from moebench.routers.policy import policy
from moebench.spec.hardware import load_hardware
from moebench.spec.load import ExpertLoad, fixed_k
from moebench.spec.model import load_model
from moebench.spec.ops import Op, linear

H100, TOP_K = load_hardware("h100-sxm"), policy("top-k")
DEEP, LLAMA = load_model("deepseek-v3"), load_model("llama-3.1-70b")
WHOLE = Deployment(DEEP, H100, level="model", context=1000)
BATCHES = [1, 16, 256]


def step(deployment: Deployment, steps: list[int] | Steps | None = None) -> StepPrice:
    router = baseline(deployment.model)
    point = deployment.routed_by(router)
    return step_price(deployment, kernel_prices(deployment), router, point, steps or BATCHES)


@pytest.mark.parametrize(("tp", "ep"), [(1, 8), (8, 1), (2, 4)])
def test_as_many_gpus_as_tp_times_ep_change_nothing(tp: int, ep: int) -> None:
    plain, told = (
        step(replace(WHOLE, parallel=Parallelism(tp, ep, gpus=gpus))) for gpus in (None, 8)
    )
    assert plain.seconds.tolist() == told.seconds.tolist()


def test_expert_parallelism_inside_the_tensor_parallel_group() -> None:
    """Four GPUs split attention four ways, hold 64 experts whole, and all have every token."""
    inside = replace(WHOLE, parallel=parallelism_of(4, 4, 4))
    assert inside.num_devices == 4 and inside.parallel.replicas == 1
    assert inside.rank.attention.num_heads == 32
    assert inside.rank.intermediate_size == DEEP.intermediate_size
    assert exchange_of(inside) is None and "exchange" not in step(inside).stages
    split = replace(WHOLE, parallel=Parallelism(4))
    held, other = (rank_parameters(one, TOP_K).experts for one in (inside, split))
    assert held == other == 58 * 64 * DEEP.expert_parameters
    # Attention, dense layers and all-reduces do not know how experts are shared.
    for name in ("attention", "projections", "dense layers", "all-reduce"):
        assert step(inside).stages[name].tolist() == step(split).stages[name].tolist()


def test_data_parallel_attention_keeps_every_head_and_splits_sequences() -> None:
    apart = replace(WHOLE, parallel=parallelism_of(8, 1, 8))
    assert apart.rank.attention.num_heads == 128 and apart.rank_workload(16).batch == 2
    assert apart.parallel.exchange_ranks == 8 and apart.parallel.summing_ranks == 1
    between = Parallelism(2, 8, gpus=8)
    assert (between.replicas, between.expert_tensor, between.exchange_ranks) == (4, 1, 8)


@pytest.mark.parametrize(("experts", "ep"), [(256, 6), (256, 3), (60, 8), (256, 256)])
def test_the_fullest_of_uneven_groups_holds_the_rest(experts: int, ep: int) -> None:
    load = ExpertLoad.expected(64, experts, fixed_k(4))
    local = most_loaded_rank(load, fixed_k(4), Parallelism(1, ep))
    assert len(local) == math.ceil(experts / ep) == Parallelism(1, ep).experts_of_rank(experts)


@settings(deadline=None, max_examples=30)
@given(st.floats(0.0, 1.5), st.integers(1, 64), st.sampled_from([2, 4, 8, 16]))
def test_redundant_experts_never_load_the_busiest_rank_more(skew: float, r: int, ep: int) -> None:
    """Up to the granularity of one expert's copy."""
    load = ExpertLoad.expected(4096, 64, fixed_k(4), skew)
    plain, copied = (
        most_loaded_rank(load, fixed_k(4), Parallelism(1, ep, redundant_experts=n)) for n in (0, r)
    )
    assert copied.sum() <= plain.sum() + copied.max()
    assert copied.sum() >= load.num_assignments / ep * (1 - 1e-9)


def test_copies_of_the_busiest_expert_share_its_tokens() -> None:
    """One expert with half of the assignments and a copy of it: two even ranks."""
    load = ExpertLoad((60.0, 20.0, 20.0, 20.0), 120, 4.0)
    local = most_loaded_rank(load, (0.0, 1.0), Parallelism(1, 1, redundant_experts=1))
    assert sorted(local.tolist()) == [20, 20, 20, 30, 30]


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_a_token_is_dispatched_once(exchange: str) -> None:
    """Elementwise kernels handle what arrives: all T k slots after an all-gather alone."""
    parallel = Parallelism(1, 8, exchange=exchange)  # type: ignore[arg-type]
    d = replace(WHOLE, level="moe", parallel=parallel, kernel="vllm-triton")
    routed = step(d, [4096]).routed
    assert routed is not None and routed.exchanged is not None
    copies, rows = float(routed.exchanged.copies[0]), float(routed.exchanged.rows[0])
    delivered, slots = routed.cases.delivered, routed.cases.delivered_copies
    if exchange == "allgather":
        assert delivered is None and slots is None
    elif exchange == "deepep-ll":
        assert delivered is not None and delivered.tolist() == [copies]
        assert slots is not None and slots.tolist() == [copies]
    else:
        assert delivered is not None and delivered.tolist() == [rows]
        assert slots is not None and slots.tolist() == [8 * rows]
    assert 4096 * 8 / 8 <= copies < 1.1 * 4096 and rows < copies


def test_what_arrives_is_what_elementwise_kernels_cost() -> None:
    """DeepSeek-V3 over 8 ranks: of T k slots the rank's own experts get an eighth."""
    layer = replace(WHOLE, level="moe", dtype="bf16")
    times = {
        exchange: step(
            replace(layer, parallel=Parallelism(1, 8, exchange=exchange)), [4096]
        ).stages["elementwise"][0]
        for exchange in EXCHANGES
    }
    assert times["deepep-ll"] < 0.3 * times["allgather"]
    assert times["deepep-ll"] < times["deepep-normal"] == times["nvlink"] < times["allgather"]


def test_one_rank_exchanges_nothing_whatever_was_asked() -> None:
    plain = step(WHOLE)
    for exchange in EXCHANGES:
        other = step(replace(WHOLE, parallel=Parallelism(exchange=exchange)))
        assert other.seconds.tolist() == plain.seconds.tolist()


def test_a_dense_model_is_its_parts() -> None:
    """Llama 3.1 70B: 80 layers of attention and one network of three 8192 x 28672 matrices."""
    d = Deployment(LLAMA, H100, level="model")
    whole, layer = step(d), step(replace(d, level="decoder"))
    for name in ("attention", "projections", "norm", "dense layers"):
        assert whole.stages[name] == pytest.approx(80 * layer.stages[name])
    assert {*whole.stages} - {*layer.stages} == {"head", "engine"} and whole.routed is None

    def products(tokens: int) -> list[Op]:
        up = linear("up", "shared", tokens, 2 * 28672, 8192, "bfloat16")
        return [up, linear("down", "shared", tokens, 8192, 28672, "bfloat16")]

    (matmuls,) = ops_price(kernel_prices(d).dense, products, np.array([16.0])).seconds
    assert matmuls < layer.stages["dense layers"][1] < 1.1 * matmuls


def test_a_dense_model_has_no_router_and_no_speedup() -> None:
    (row,) = speedups(Deployment(LLAMA, H100, level="model"), NO_ROUTER, [4])
    assert row.value == row.flops_promise == 1 and row.basis is None and row.mean_k == 0
    assert row.memory["weights"] == 2 * 70_553_706_496
    # 2 FLOP for each parameter but the embedding table's, and the scores of 1025 keys.
    weights, scores = 70_553_706_496 - 128256 * 8192, 80 * 64 * 256 * 1025
    assert row.estimate.flops == pytest.approx(4 * 2 * (weights + scores), rel=1e-4)


def test_a_grid_of_contexts_is_priced_as_each_alone() -> None:
    grid = step(WHOLE, Steps(np.array([4, 4, 64]), np.array([100, 5000, 100])))
    for i, (batch, context) in enumerate([(4, 100), (4, 5000), (64, 100)]):
        alone = step(replace(WHOLE, context=context), [batch])
        assert grid.seconds[i] == pytest.approx(alone.seconds[0], rel=1e-12)


def test_a_pipeline_divides_memory_and_adds_transfers() -> None:
    plain, piped = (Deployment(LLAMA, H100, level="model", parallel=p) for p in PIPES)
    assert sum(rank_parameters(piped, NO_ROUTER)) < 0.3 * sum(rank_parameters(plain, NO_ROUTER))
    prefill = [step(replace(one, phase="prefill"), [4]) for one in (plain, piped)]
    transfers = prefill[1].stages["pipeline"][0]
    assert prefill[1].seconds[0] == pytest.approx(prefill[0].seconds[0] + transfers)
    # In decode a quarter of the sequences goes through the stages together.
    assert step(piped, [64]).stages["head"] == step(plain, [16]).stages["head"]


PIPES = Parallelism(), Parallelism(pipeline_parallel=4)


def test_a_drafted_step_runs_every_token_and_keeps_the_geometric_series() -> None:
    drafted = replace(WHOLE, draft=Draft(3, 0.5))
    assert drafted.tokens_per_step == 1 + 0.5 + 0.25 + 0.125
    assert drafted.workload(8).num_tokens == 32
    assert step(drafted, [8]).stages["first matmul"] == step(WHOLE, [32]).stages["first matmul"]
    assert Draft(3, 0.0).tokens_per_step == 1 and Draft(3, 1.0).tokens_per_step == 4


def test_a_cached_prefix_is_attended_and_not_computed() -> None:
    prefill = Deployment(LLAMA, H100, phase="prefill", level="model", context=4096)
    whole, rest = (step(replace(prefill, cached_prefix=n), [1]) for n in (0, 4000))
    assert (
        rest.stages["dense layers"]
        == step(replace(prefill, context=96), [1]).stages["dense layers"]
    )
    assert step(replace(prefill, context=96), [1]).stages["attention"] < rest.stages["attention"]
    assert rest.stages["attention"] < whole.stages["attention"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gpus": 6, "tensor_parallel": 4}, "tp: found 4, expected a divisor of the 6 GPUs"),
        ({"gpus": 8, "expert_parallel": 3}, "ep: found 3, expected a divisor of the 8 GPUs"),
        ({"expert_parallel": 0}, "tp and ep: found 1 and 0"),
        ({"gpus": 8, "pipeline_parallel": 3}, "pp: found 3, expected a divisor of the 8 GPUs"),
        ({"gpus": 8, "nodes": 3}, "nodes: found 3, expected a divisor of the 8 GPUs"),
        ({"gpus": 5000}, "gpus: found 5000, expected 1 to 4096"),
        ({"redundant_experts": -1}, "redundant-experts: found -1"),
        ({"exchange": "deepep"}, "exchange: found 'deepep'; did you mean one of deepep-ll"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Parallelism(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cached_prefix": 5}, "cached-prefix: found 5 in decode, expected a prefill"),
        ({"cached_prefix": 64, "phase": "prefill", "context": 64}, "less than the context of 64"),
        ({"draft": Draft(1, 0.5), "phase": "prefill"}, "draft: found one in prefill"),
        ({"engine": "vlm"}, "engine: found 'vlm'"),
        ({"model": LLAMA, "parallel": Parallelism(1, 2)}, "ep: found 2, expected 1"),
        ({"model": LLAMA, "level": "moe"}, "llama-3.1-70b: found a dense model"),
    ],
)
def test_what_a_step_cannot_have_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Deployment(**{"model": DEEP, "hardware": H100, "level": "model", **fields})  # type: ignore


WIDE = replace(WHOLE, parallel=Parallelism(1, 32))


def test_a_single_part_hides_nothing_and_many_at_most_the_smaller_half() -> None:
    computing, exchange = np.array([3.0, 1.0]), np.array([1.0, 3.0])
    assert (exposed(computing, exchange, np.array([1.0, 1.0])) == exchange).all()
    whole = computing + exposed(computing, exchange, np.array([1e9, 1e9]))
    assert whole == pytest.approx(np.maximum(computing, exchange))


@pytest.mark.parametrize("changes", [{"chunks": 4}, {"has_two_batches": True}])
def test_overlap_pays_where_the_exchange_is_long_and_costs_where_weights_are_read(
    changes: dict[str, int],
) -> None:
    overlapped = replace(WIDE, parallel=replace(WIDE.parallel, **changes))  # type: ignore[arg-type]
    plain, other = step(WIDE, [64, 8192]), step(overlapped, [64, 8192])
    assert other.seconds[0] > plain.seconds[0] and other.seconds[1] < plain.seconds[1]
    assert other.seconds[1] > plain.seconds[1] / 2
    assert [other.load(i) for i in (0, 1)] == [plain.load(i) for i in (0, 1)]
    one, two = step(replace(WIDE), [1]), step(overlapped, [1])
    assert one.seconds == pytest.approx(two.seconds) or changes == {"chunks": 4}


def test_the_best_number_of_chunks_is_at_least_as_fast_as_any() -> None:
    best = best_chunks(WIDE, 4096)
    for chunks in (1, 2, 8):
        other = replace(WIDE, parallel=replace(WIDE.parallel, chunks=chunks))
        assert step(best, [4096]).seconds <= step(other, [4096]).seconds


@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_latent_attention_is_the_block_that_was_fitted(phase: str) -> None:
    """Cut in two, attention and all else of a layer add up to one call of the block."""
    d = replace(WHOLE, phase=phase, level="decoder", context=2000)  # type: ignore[arg-type]
    found = step(d, [3])
    new, prefix = (1, 2000) if phase == "decode" else (2000, 0)
    sizes = {"batch": 3, "new_tokens": new, "prefix": prefix, "heads": 128, "hidden_size": 7168}
    sizes |= {
        "query_rank": 1536,
        "kv_rank": 512,
        "plain_width": 128,
        "rope_width": 64,
        "value_width": 128,
        "splits": 1,
    }
    columns = {name: np.array([float(size)]) for name, size in sizes.items()}
    calls = MlaBlockCalls(**columns, kv_bytes=np.array([2.0]), weights=np.array(["float8"]))
    block = mla_block(d).seconds(calls)
    assert found.stages["attention"] + found.stages["projections"] == pytest.approx(block)
