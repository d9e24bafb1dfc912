"""Routers put into real models of transformers: the identity at step 0, taking them out, saving."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers", reason="routers are put into models of transformers")

from identity import (  # noqa: E402
    ROUTERS,
    answer,
    applied,
    base_difference,
    difference,
    router_difference,
    tiny_model,
)

import moebench  # noqa: E402
from moebench.experts.backends import why_not  # noqa: E402
from moebench.model.huggingface.apply import applied_router  # noqa: E402
from moebench.model.huggingface.blocks import FAMILIES, moe_blocks  # noqa: E402

QUICK = {("mixtral", "fp32"), ("glm4_moe", "fp32"), ("gpt_oss", "bf16")}
PAPERS = ("ada-k", "adamoe", "rmoe")

pytestmark = pytest.mark.filterwarnings("ignore")
"""Of transformers, about generation settings of the tiny copies."""


def cases() -> list[Any]:
    return [
        pytest.param(family, dtype, marks=() if (family, dtype) in QUICK else pytest.mark.slow)
        for family in FAMILIES
        for dtype in ("fp32", "bf16")
    ]


@pytest.mark.parametrize(("family", "dtype"), cases())
def test_the_same_experts_run_as_in_the_untouched_model(family: str, dtype: str) -> None:
    """Ties included; logits then differ by rounding, as transformers' own two ways do."""
    found = base_difference(family, dtype)
    assert found.other_experts == 0 and found.tied > 10
    if dtype == "fp32":
        assert found.logits < 1e-4
    else:
        assert found.distance <= 1.15 * found.eager


@pytest.mark.parametrize(("family", "dtype"), cases())
def test_step_zero_is_top_k_to_the_bit(
    family: str, dtype: str, request: pytest.FixtureRequest
) -> None:
    """In a batch padded on the left, and in what is generated after it with the cache."""
    is_slow = request.node.get_closest_marker("slow") is not None
    for name in ROUTERS if is_slow else PAPERS:
        assert router_difference(family, dtype, name) == 0, name


def test_removing_puts_everything_back() -> None:
    model = tiny_model("qwen2_moe", torch.float32)
    before, names = answer(model), list(model.state_dict())
    modules = dict(model.named_modules())
    moebench.apply_router(model, "rmoe")
    assert list(model.state_dict()) == names
    assert any("moebench" in name for name, _ in model.named_parameters())
    model.load_state_dict(model.state_dict())
    moebench.remove_router(model)
    assert dict(model.named_modules()) == modules
    assert difference(answer(model), before) == 0


@pytest.mark.parametrize("name", ["loop", "packed", "avx512", "transformers-grouped-mm"])
def test_every_backend_runs_a_models_own_weights(name: str) -> None:
    """Also where it keeps a copy in its own layout, and when a weight has changed since."""
    if why := why_not(name, torch.device("cpu"), torch.float32):
        pytest.skip(why)
    model = tiny_model("olmoe", torch.float32)
    for scale in (1.0, 1.5):
        (block, *_) = moe_blocks(model)
        with torch.no_grad():
            block.experts.down_proj.mul_(scale)
        expected = answer(model)
        with applied(model, "top-k", expert_backend=name):
            assert difference(answer(model), expected) < 1e-4


def test_a_forward_that_others_put_on_a_module_is_not_run() -> None:
    """Accelerate puts its own there, around the forward of the class that it found."""
    model = tiny_model("mixtral", torch.float32)
    for block in moe_blocks(model):
        block.gate.forward, block.experts.forward = block.gate.forward, block.experts.forward
    before = answer(model)
    with applied(model, "top-k", top_k=1):
        assert difference(answer(model), before) > 1e-3


def test_a_base_that_is_moved_or_changed_while_a_router_is_applied_stays_so() -> None:
    """Experts are views: what an optimiser writes is what runs, also after removing."""
    model = tiny_model("gpt_oss", torch.float32).train()
    parameters = {name: id(p) for name, p in model.named_parameters()}
    moebench.apply_router(model, "top-k")
    (block, *_) = applied_router(model).blocks
    weights = block.experts.expert_weights[0]
    stored = block.experts.gate_up_proj
    assert weights.gate_up.data_ptr() == stored.data_ptr()
    before = answer(model)
    with torch.no_grad():
        stored.mul_(1.5)
    model.eval()
    assert difference(changed := answer(model), before) > 1e-3
    moebench.remove_router(model)
    assert difference(answer(model), changed) < 1e-4
    assert {name: id(p) for name, p in model.named_parameters()} == parameters
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("top-k", {"top_k": 1}),
        ("adamoe", {"start": "copied-rows"}),
        ("rmoe", {"residual": False}),
        ("top-p", {"p": 0.3}),
    ],
)
def test_options_change_the_model(name: str, options: dict[str, Any]) -> None:
    model = tiny_model("mixtral", torch.float32)
    before = answer(model)
    with applied(model, name, **options):
        assert difference(answer(model), before) > 1e-3
    assert difference(answer(model), before) == 0


@pytest.mark.parametrize("name", ["ada-k", "adamoe", "rmoe", "fixed-k"])
def test_saving_and_loading_gives_the_same(name: str, tmp_path: Path) -> None:
    """The base is saved as it was, the router beside it; both are changed before."""
    from transformers import AutoModelForCausalLM

    model = tiny_model("mixtral", torch.bfloat16)
    untouched = answer(model)
    options = {"k": (1, 2)} if name == "fixed-k" else {}
    moebench.apply_router(model, name, **options)
    routers = applied_router(model).routers
    with torch.no_grad():
        for router in routers:
            for tensor in router.parameters():
                tensor.add_(0.3 * torch.randn_like(tensor))
    expected = answer(model)
    assert difference(expected, untouched) > 1e-2
    model.save_pretrained(tmp_path)
    moebench.save_router(model, tmp_path / "router.safetensors")
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    assert difference(answer(again), untouched) == 0
    moebench.load_router(again, tmp_path / "router.safetensors")
    assert difference(answer(again), expected) == 0


def test_the_file_of_an_untrained_router_leaves_the_base_out(tmp_path: Path) -> None:
    from safetensors import safe_open

    model = tiny_model("mixtral", torch.float32)
    moebench.apply_router(model, "ada-k")
    path = tmp_path / "router.safetensors"
    moebench.save_router(model, path)
    with safe_open(path, "pt") as file:
        assert {name.partition(".")[2] for name in file.keys()} == {  # noqa: SIM118
            "allocator",
            "count_bias",
            "selection_bias",
        }
        assert json.loads(file.metadata()["options"])["decode"] == "argmax"
    other = tiny_model("mixtral", torch.float32, seed=3)
    with pytest.raises(ValueError, match="base_sha256: found .*another mixtral base"):
        moebench.load_router(other, path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match="cannot be read"):
        moebench.load_router(other, path)


def gradients(model: Any, ids: tuple[Tensor, ...]) -> list[Tensor]:
    """Gradients of all parameters of one loss over several forwards, whose backward comes last."""
    model.zero_grad()
    losses = [model(part, labels=part).loss for part in ids]
    torch.stack(losses).sum().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_gradient_checkpointing_keeps_the_state_of_its_own_forward() -> None:
    """RMoE's state goes up through layers that run a second time, for two forwards in turn."""
    model = tiny_model("mixtral", torch.float32)
    moebench.apply_router(model, "rmoe", state_size=16)
    with torch.no_grad():
        for router in applied_router(model).routers:
            router.recurrent_gate.normal_()
    model.train()
    ids = (torch.randint(1, 32, (2, 9)), torch.randint(1, 32, (2, 9)))
    plain = gradients(model, ids)
    cell = applied_router(model).routers[0].cell
    assert cell.weight_hh.grad.abs().max() > 0
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for one, other in zip(gradients(model, ids), plain, strict=True):
        torch.testing.assert_close(one, other)
    model.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(ValueError, match="use_reentrant=False"):
        gradients(model, ids)


def test_a_frozen_base_gets_no_gradients_and_its_router_does() -> None:
    model = tiny_model("gpt_oss", torch.float32).requires_grad_(False)
    moebench.apply_router(model, "rmoe")
    model.train()(torch.randint(1, 32, (2, 9)), labels=torch.randint(1, 32, (2, 9))).loss.backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained and all(".moebench." in name for name in trained)
    assert applied_router(model).routers[0].recurrent_gate.grad.abs().max() > 0
    model.requires_grad_(False)
    assert not model(torch.randint(1, 32, (2, 9))).logits.requires_grad


@pytest.mark.parametrize("hooked_before", [True, False])
def test_router_logits_are_recorded(hooked_before: bool) -> None:
    """Those of the true experts; transformers hooks a model's routers once, at the first use."""
    model = tiny_model("mixtral", torch.float32)
    ids = torch.randint(1, 32, (2, 9))
    expected = model(ids, output_router_logits=True) if hooked_before else None
    with applied(model, "adamoe"):
        found = model(ids, output_router_logits=True)
        assert [logits.shape for logits in found.router_logits] == [(18, 8)] * 2
    again = model(ids, output_router_logits=True)
    for one in (found,) if expected is None else (found, expected):
        torch.testing.assert_close(one.router_logits[1], again.router_logits[1])


def test_the_routing_is_in_the_output_of_each_gate() -> None:
    model = tiny_model("olmoe", torch.float32)
    moebench.apply_router(model, "top-k", top_k=3)
    seen: list[moebench.Routing] = []
    for block in moe_blocks(model):
        block.gate.register_forward_hook(lambda _, __, output: seen.append(output[1]))
    model(torch.randint(1, 32, (2, 9)))
    assert [routing.num_assignments for routing in seen] == [2 * 9 * 3] * 2


MISTAKES = {
    "an unknown router": ("adak", {}, "did you mean 'ada-k'"),
    "an unknown option": ("ada-k", {"lambda": 1}, "lambda"),
    "a router without a start": ("balanced", {}, "cannot start from a pretrained router"),
    "an unknown backend": ("top-k", {"expert_backend": "groupd"}, "did you mean 'grouped'"),
    "a backend without biases": ("top-k", {"expert_backend": "packed"}, "only these take: loop"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_named_and_leaves_the_model_alone(case: str) -> None:
    name, options, message = MISTAKES[case]
    model = tiny_model("gpt_oss", torch.float32)
    modules = dict(model.named_modules())
    with pytest.raises(ValueError, match=message):
        moebench.apply_router(model, name, **options)
    assert dict(model.named_modules()) == modules
    with pytest.raises(ValueError, match="found no router applied"):
        moebench.remove_router(model)


def test_a_model_without_experts_or_of_another_family_is_refused() -> None:
    from transformers import AutoModelForCausalLM, DeepseekV3Config, LlamaConfig

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "vocab_size": 32, "intermediate_size": 32}
    llama = AutoModelForCausalLM.from_config(LlamaConfig(**sizes, num_attention_heads=2))
    with pytest.raises(ValueError, match="model_type: found 'llama', expected .*deepseek_v2"):
        moebench.apply_router(llama, "top-k")
    dense = DeepseekV3Config(**sizes, num_attention_heads=2, first_k_dense_replace=1)
    with pytest.raises(ValueError, match="found no MoE block in this 'deepseek_v3' model"):
        moebench.apply_router(AutoModelForCausalLM.from_config(dense), "top-k")
    with pytest.raises(ValueError, match="found a Linear, expected a model of transformers"):
        moebench.apply_router(torch.nn.Linear(2, 2), "top-k")


def test_applying_twice_and_casting_afterwards_are_refused() -> None:
    model = tiny_model("mixtral", torch.float32)
    moebench.apply_router(model, "top-k")
    with pytest.raises(ValueError, match="found 'top-k' applied to it; call remove_router"):
        moebench.apply_router(model, "ada-k")
    model.to(torch.bfloat16)
    with pytest.raises(ValueError, match="cast to torch.bfloat16 after apply_router"):
        answer(model)


def test_without_transformers_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = "moebench.model.huggingface.blocks"
    monkeypatch.setattr(f"{module}.not_installed", lambda name: f"{name} is not installed")
    with pytest.raises(ValueError, match=r"not installed \(pip install 'moebench\[hf\]'\)"):
        moebench.apply_router(torch.nn.Linear(2, 2), "top-k")
