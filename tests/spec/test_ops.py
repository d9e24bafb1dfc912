"""FLOPs, bytes and parameters: by hand on small shapes, and against published figures."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moebench.experts.catalogue import EXPERT_BACKENDS
from moebench.routers.policy import policy
from moebench.spec.attention import Attention
from moebench.spec.case import Workload
from moebench.spec.gate import Gate
from moebench.spec.layer import (
    attention_ops,
    cache_elements_per_token,
    dense_ffn_ops,
    head_ops,
    layer_ops,
)
from moebench.spec.load import ExpertLoad, fixed_k
from moebench.spec.model import ModelSpec, load_model
from moebench.spec.ops import (
    STAGES,
    Op,
    expert_ops,
    linear,
    shared_expert_ops,
    total_flops,
    traffic,
    training_ops,
)
from moebench.spec.parameters import parameters, router_parameters

GROUPED = EXPERT_BACKENDS["grouped"]
PRINTED = 0.005
"""The papers below print three digits."""


def layer(model: ModelSpec, workload: Workload, k: int) -> tuple[Op, ...]:
    """One routed layer with fixed k and the model's own router."""
    load = ExpertLoad.expected(workload.num_tokens, model.num_experts, fixed_k(k))
    router = policy("top-k", {"top_k": k}).ops(model, workload.num_tokens, workload.dtype)
    return layer_ops(model, workload, router, load, GROUPED)


def test_a_matrix_product_by_hand() -> None:
    """Inputs [3, 5], weight [5, 7]: 3 * 5 * 7 multiply-adds, every operand moved once."""
    op = linear("op", "experts", 3, 7, 5, "bfloat16")
    assert op.flops == 2 * 3 * 5 * 7
    assert op.bytes_read == 2 * (5 * 7 + 3 * 5)
    assert op.bytes_written == 2 * 3 * 7


def test_a_grouped_matrix_product_is_that_many_products() -> None:
    one, four = (linear("op", "experts", 3, 7, 5, "float32", groups=g) for g in (1, 4))
    assert four.flops == 4 * one.flops
    assert four.bytes_moved == 4 * one.bytes_moved


def test_moving_data_is_no_flop() -> None:
    op = traffic("norm", "norm", 10, 20, "float32")
    assert (op.flops, op.bytes_read, op.bytes_written) == (0, 40, 80)


def test_an_expert_of_mixtral_by_hand() -> None:
    """One assignment: three matrices of 4096 x 14336, two FLOP a multiply-add: 352.3 MFLOP."""
    mixtral = load_model("mixtral-8x7b")
    ops = expert_ops(mixtral, ExpertLoad.observed([1] + [0] * 7, 1), "bfloat16", GROUPED)
    assert total_flops(ops) == 2 * 3 * 4096 * 14336
    weights = 2 * 3 * 4096 * 14336
    assert sum(op.bytes_read for op in ops if op.rows is not None) == weights + 2 * (4096 + 14336)


@given(counts=st.lists(st.integers(0, 9), min_size=4, max_size=4))
def test_expert_work_counts_assignments_and_touched_weights(counts: list[int]) -> None:
    """FLOPs follow the assignments, weight traffic the touched experts; nobody, no work."""
    model = ModelSpec(
        name="toy",
        source="made for tests",
        num_layers=1,
        hidden_size=32,
        intermediate_size=16,
        num_experts=4,
        top_k=2,
        vocab_size=64,
        attention=Attention(kind="gqa", num_heads=4, num_kv_heads=2, head_dim=8),
        gate=Gate(score="softmax", renormalise=True),
    )
    ops = expert_ops(model, ExpertLoad.observed(counts, 18), "float32", GROUPED)
    products = [op for op in ops if op.rows is not None]
    assigned, touched = sum(counts), sum(count > 0 for count in counts)
    assert total_flops(ops) == pytest.approx(assigned * 2 * 3 * 32 * 16)
    weights = touched * 4 * 3 * 32 * 16
    inputs = assigned * 4 * (32 + 16)
    assert sum(op.bytes_read for op in products) == pytest.approx(weights + inputs)


def test_two_matrices_cost_two_thirds_of_three(tiny: ModelSpec) -> None:
    load = ExpertLoad.expected(8, 4, fixed_k(2))
    gated, plain = (
        total_flops(expert_ops(replace(tiny, is_gated=g), load, "float32", GROUPED))
        for g in (True, False)
    )
    assert plain * 3 == pytest.approx(gated * 2)


def test_parameters_by_hand(tiny: ModelSpec) -> None:
    """Hidden 32, 4 heads of 8 (2 for keys and values), 4 experts of 16, 2 layers, 64 tokens."""
    attention = 32 * 32 + 2 * 16 * 32 + 32 * 32
    experts = 4 * 3 * 32 * 16
    a_layer = attention + 2 * 32 + 4 * 32 + experts
    assert parameters(tiny) == 2 * a_layer + 2 * 64 * 32 + 32
    assert parameters(tiny, 2) == parameters(tiny) - 2 * 2 * 3 * 32 * 16
    assert parameters(replace(tiny, has_tied_embeddings=True)) == parameters(tiny) - 64 * 32
    assert router_parameters(tiny) == 2 * 4 * 32


def test_biases_norms_and_shared_gates_are_parameters(tiny: ModelSpec) -> None:
    def with_attention(**change: object) -> ModelSpec:
        return replace(tiny, attention=replace(tiny.attention, **change))  # type: ignore[arg-type]

    before = parameters(tiny)
    assert parameters(with_attention(has_bias=True)) == before + 2 * (32 + 16 + 16)
    assert parameters(with_attention(norm="per-head")) == before + 2 * (8 + 8)
    assert parameters(with_attention(norm="full")) == before + 2 * (32 + 16)
    shared = replace(tiny, shared_intermediate_size=10, has_shared_gate=True)
    assert parameters(shared) == before + 2 * (3 * 32 * 10 + 32)


def whole_model_flops(model: ModelSpec, tokens: int, k: int) -> float:
    """Forward FLOPs of one sequence in the convention of Ada-K: all tokens squared, no mask."""
    workload = Workload("prefill", "decoder", 1, tokens)
    masked = total_flops(op for op in attention_ops(model, workload) if op.rows is None)
    square = masked * tokens / ((tokens + 1) / 2)
    projections = total_flops(op for op in attention_ops(model, workload) if op.rows is not None)
    routed = total_flops(op for op in layer(model, workload, k) if op.stage != "attention")
    dense = total_flops(dense_ffn_ops(model, tokens, "bfloat16"))
    return (
        model.num_layers * (projections + square)
        + model.num_moe_layers * routed
        + model.num_dense_layers * dense
        + total_flops(head_ops(model, tokens, "bfloat16"))
    )


@pytest.mark.parametrize(
    ("name", "k", "published"),
    [
        ("mixtral-8x7b", 2, 6.56e12),
        ("mixtral-8x7b", 1, 3.68e12),
        ("mixtral-8x22b", 2, 20.04e12),
        ("mixtral-8x22b", 1, 11.38e12),
        ("qwen1.5-moe-a2.7b", 4, 1.23e12),
        ("deepseek-moe-16b", 6, 1.36e12),
    ],
)
def test_flops_of_256_tokens_are_the_published_ones(name: str, k: int, published: float) -> None:
    """Yue et al., Ada-K, ICLR 2025, Table 3.

    Its rows of Qwen and DeepSeek at a smaller k are not here: their differences do not follow
    from the shapes (DeepSeek from 6 to 5 experts: 0.16 T printed, 0.12 T by the shapes).
    """
    assert whole_model_flops(load_model(name), 256, k) == pytest.approx(published, rel=PRINTED)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("deepseek-v3", 70_272),
        ("mixtral-8x7b", 131_072),
    ],
)
def test_cache_of_a_token_is_the_published_one(name: str, published: int) -> None:
    """Bytes in all layers at bfloat16.

    DeepSeek-AI, Insights into DeepSeek-V3 (2505.09343), Table 1: 70.272 KB. Mixtral by hand: two
    vectors of 8 heads of 128 in each of 32 layers.
    """
    model = load_model(name)
    assert 2 * model.num_layers * cache_elements_per_token(model.attention) == published


def test_a_token_attends_to_itself_and_what_is_before_it(tiny: ModelSpec) -> None:
    """Five new tokens after three: they see 4, 5, 6, 7 and 8 positions, in 4 heads of 8 + 8."""
    ops = attention_ops(tiny, Workload("prefill", "decoder", 1, 5, 3))
    (scores,) = [op for op in ops if op.rows is None and op.flops]
    assert scores.flops == 2 * (4 + 5 + 6 + 7 + 8) * 4 * (8 + 8)


def test_decode_reads_the_whole_cache(tiny: ModelSpec) -> None:
    """One more token of context: its key and value of two heads of 8, read once a sequence."""

    def read(context: int) -> float:
        workload = Workload("decode", "decoder", 3, 1, context, "float32")
        return sum(op.bytes_read for op in attention_ops(tiny, workload))

    assert read(101) - read(100) == 3 * 4 * 2 * 2 * 8


def test_training_costs_three_forwards_in_matrix_products(tiny: ModelSpec) -> None:
    """Backward has two products of the same size; attention scores have two as well."""
    forward = layer(tiny, Workload("train", "decoder", 1, 16), 2)
    assert total_flops(training_ops(forward)) == pytest.approx(3 * total_flops(forward))


def test_the_backward_of_a_product_writes_both_gradients() -> None:
    """Inputs [3, 5], weight [5, 7]: their gradients have the same shapes."""
    _, grad_input, grad_weight = training_ops([linear("op", "experts", 3, 7, 5, "float32")])
    assert grad_input.bytes_written == 4 * 3 * 5
    assert grad_weight.bytes_written == 4 * 5 * 7
    assert grad_input.bytes_read == 4 * (5 * 7 + 3 * 7)
    assert grad_weight.bytes_read == 4 * (3 * 5 + 3 * 7)


def test_shared_experts_run_for_every_token(tiny: ModelSpec) -> None:
    assert shared_expert_ops(tiny, 6, "float32") == ()
    shared = replace(tiny, shared_intermediate_size=10, has_shared_gate=True)
    assert total_flops(shared_expert_ops(shared, 6, "float32")) == 2 * 6 * (3 * 32 * 10 + 32)


def test_every_op_belongs_to_a_stage_and_nothing_is_negative() -> None:
    for name in ("mixtral-8x7b", "qwen1.5-moe-a2.7b", "deepseek-v3"):
        model = load_model(name)
        for op in training_ops(layer(model, Workload("train", "decoder", 1, 8), model.top_k)):
            assert op.stage in STAGES
            assert min(op.flops, op.bytes_read, op.bytes_written, op.launches) >= 0
