"""All weights of models of transformers trained in bf16, layers run again, and taken up."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason="it is models of transformers that are trained")

from identity import tiny_model  # noqa: E402

from moebench.train.adamoe import AdaMoEOptions, AdaMoERecipe  # noqa: E402
from moebench.train.checkpoint import restore  # noqa: E402
from moebench.train.tuned_checkpoint import TunedCheckpoint  # noqa: E402


@pytest.mark.parametrize(
    "family",
    [
        "mixtral",
        *(
            pytest.param(family, marks=pytest.mark.slow)
            for family in ("deepseek_v3", "gpt_oss", "granitemoe", "qwen2_moe")
        ),
    ],
)
def test_a_tuning_in_bf16_that_is_taken_up_is_the_same(family: str) -> None:
    """Layers run again in the backward pass; weights are the rounded ones of fp32."""
    batches = torch.randint(1, 32, (8, 2, 17), generator=torch.Generator().manual_seed(0))
    top_k = {"mixtral": 3}.get(family, 5)
    options = AdaMoEOptions(top_k=top_k, learning_rate=1e-4, warmup_steps=0)

    def recipe() -> AdaMoERecipe:
        model = tiny_model(family, torch.bfloat16)
        network = TunedCheckpoint(model, "adamoe", options.router_options())
        return AdaMoERecipe(network, options, len(batches))

    whole, metrics, passes = recipe(), [], []
    start = {name: tensor.clone() for name, tensor in whole.tensors().items()}
    network = whole.network
    assert isinstance(network, TunedCheckpoint)
    attention = network.model.model.layers[-1].self_attn
    attention.register_forward_hook(lambda *_: passes.append(attention.training))
    for step, batch in enumerate(batches):
        if step == 4:
            kept = {name: tensor.clone() for name, tensor in whole.tensors().items()}
        metrics.append(whole.step(batch, step))
        assert passes == [False] * 2 * (step + 1)
    resumed = recipe()
    restore(resumed.tensors(), kept, Path("kept"))
    assert [resumed.step(batches[step], step) for step in range(4, 8)] == metrics[4:]
    ended = whole.tensors()
    copies = [name for name in ended if name.startswith("adam.fp32.")]
    assert len(copies) > 10
    for name in copies:
        own = ended[name.removeprefix("adam.fp32.")]
        assert torch.equal(ended[name].to(own.dtype), own)
    changed = [name for name in copies if not torch.equal(ended[name], start[name])]
    assert len(changed) == len(copies)
    assert all(m["auxiliary_loss"] > 0 for m in metrics)
    for block in network.applied.blocks:
        assert not block.weight.requires_grad
