"""MoE blocks of a transformers model: found by the class of their router, not by their path.

Routers sit at `layers[i].mlp.gate` in most families, at `mlp.router` in gpt-oss and at
`block_sparse_moe.router` in Granite. Their class is the one that transformers records router
logits of (`_can_record_outputs`); the experts are the module beside it. In every family here the
block passes what its router returns on to its experts as it is, which is what an applied router
rests on.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from moebench.experts.weights import not_installed
from moebench.model.huggingface.dispatch import execution_device, held
from moebench.spec.huggingface.families import family
from moebench.spec.huggingface.translate import translate
from moebench.spec.model import ModelSpec
from moebench.units import nearest

FAMILIES = (
    *("deepseek_v2", "deepseek_v3", "glm4_moe", "gpt_oss", "granitemoe", "mixtral"),
    *("olmoe", "qwen2_moe", "qwen3_moe"),
)
"""Every `model_type` that routers are applied to: those of `tests/bench_identity.py`."""


@dataclass(frozen=True, eq=False)
class Block:
    """One MoE block of a model, and the names of its router and of its experts in it."""

    path: str
    module: nn.Module
    gate_name: str
    experts_name: str
    layer: nn.Module | None
    """The layer around it that gradient checkpointing runs again."""

    @property
    def gate(self) -> nn.Module:
        """The router that the block has now."""
        found: nn.Module = getattr(self.module, self.gate_name)
        return found

    @property
    def experts(self) -> nn.Module:
        """The experts that the block has now."""
        found: nn.Module = getattr(self.module, self.experts_name)
        return found

    @property
    def weight(self) -> Tensor:
        """The base's own router weight [experts, hidden]."""
        return held(self.gate, "weight")

    @property
    def device(self) -> torch.device:
        """Where its router runs."""
        return execution_device(self.gate, "weight")

    @property
    def bias(self) -> Tensor | None:
        """The base's bias on the logits, where its gate has one."""
        return self._held("bias")

    @property
    def correction_bias(self) -> Tensor | None:
        """The base's bias on the scores that compete, where its gate has one."""
        return self._held("e_score_correction_bias")

    def _held(self, name: str) -> Tensor | None:
        return None if getattr(self.gate, name, None) is None else held(self.gate, name)


def text_config(model: nn.Module) -> Any:
    """The config of the model's language part; a ValueError where routers cannot be applied."""
    if why := not_installed("transformers"):
        raise ValueError(f"{why} (pip install 'moebench[hf]')")
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise ValueError(f"model: found a {type(model).__name__}, expected a model of transformers")
    if (model.tp_size or 1) > 1:
        raise ValueError(
            f"model: found it split over {model.tp_size} devices by tensor parallelism, expected "
            "whole layers on a device"
        )
    config = model.config.get_text_config(decoder=True)
    kind = str(config.model_type)
    if kind not in FAMILIES:
        raise ValueError(
            f"model_type: found {kind!r}, expected a family of models with experts that routers "
            f"are applied to: {', '.join(FAMILIES)}{nearest(kind, FAMILIES)}"
        )
    return config


def described(model: nn.Module) -> ModelSpec:
    """The network of a transformers model, by its config."""
    config = text_config(model)
    kind = config.model_type
    return translate(config.to_dict(), family(kind), f"the model's {kind} config", kind)


def moe_blocks(model: nn.Module) -> list[Block]:
    """Every MoE block in the order of the layers; a ValueError where there is none."""
    kind = text_config(model).model_type
    modules = dict(model.named_modules())
    routers = tuple(_router_classes(model))
    found = []
    for path, module in modules.items():
        children = dict(module.named_children())
        gates = [name for name, child in children.items() if isinstance(child, routers)]
        experts = [name for name, child in children.items() if hasattr(child, "is_transposed")]
        if len(gates) == len(experts) == 1:
            found.append(Block(path, module, gates[0], experts[0], _layer(path, modules)))
    if not found:
        raise ValueError(f"model: found no MoE block in this {kind!r} model, expected at least one")
    for block in found:
        _check(block)
    return found


def _router_classes(model: nn.Module) -> set[type[nn.Module]]:
    """Classes whose logits transformers records."""
    recorded = (getattr(type(m), "_can_record_outputs", None) or {} for m in model.modules())
    recorders = (one["router_logits"] for one in recorded if "router_logits" in one)
    return {recorder.target_class for recorder in recorders if recorder.target_class is not None}


def _layer(path: str, modules: dict[str, nn.Module]) -> nn.Module | None:
    from transformers.modeling_layers import GradientCheckpointingLayer

    while path:
        path = path.rpartition(".")[0]
        if isinstance(modules[path], GradientCheckpointingLayer):
            return modules[path]
    return None


def _check(block: Block) -> None:
    """Refuse weights that have no data or are not plain numbers."""
    for module in (block.gate, block.experts):
        for name, tensor in module.named_parameters(recurse=False):
            where = f"{block.path}: {name}"
            if tensor.dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
                raise ValueError(
                    f"{where}: found {tensor.dtype}, expected weights without quantisation"
                )
            try:
                held(module, name)
            except ValueError as error:
                raise ValueError(f"{block.path}: {error}") from None
