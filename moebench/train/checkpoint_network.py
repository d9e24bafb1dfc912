"""Ada-K's allocators on a checkpoint that transformers loads.

The model runs as it is, in the type that it is stored in, with moebench's routers and ragged
experts in its MoE blocks; nothing in it has a gradient but the allocators. They are trained in
fp32 and rounded to the model's type in every product: in 16 bits a step of AdamW would be lost in
rounding. The result is a router file, `router.safetensors`, that `moebench.load_router` puts onto
the same checkpoint.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from moebench.model.huggingface.apply import AppliedRouter, apply_router, started_routers
from moebench.model.huggingface.blocks import described, moe_blocks
from moebench.model.huggingface.dispatch import Placement, held, input_device
from moebench.model.huggingface.loading import load_model
from moebench.model.huggingface.router_file import base_hash
from moebench.model.huggingface.tokens import Tokenise, tokeniser_of
from moebench.model.language_model import token_losses
from moebench.routers.ada_k.module import AdaKRouter
from moebench.routers.ada_k.policy import AdaK
from moebench.routers.policy import policy
from moebench.routers.routing import Router
from moebench.spec.model import ModelSpec
from moebench.train.ada_k import Passes
from moebench.train.text import Windows

TRAINED_TYPES = ("float32", "bfloat16")


@dataclass(frozen=True, eq=False)
class Pretrained:
    """A checkpoint that a training starts from."""

    name: str
    """Of its folder, or of its repository on a hub."""
    folder: Path
    model: Any
    """Of transformers, in evaluation mode."""
    spec: ModelSpec
    sha256: str
    """Hash of its routers, by which a router file knows its base."""
    tokenise: Tokenise


def load_pretrained(checkpoint: str, place: Placement) -> Pretrained:
    """A checkpoint by its folder or hub id; a ValueError where routers cannot be put into it."""
    folder, model = load_model(checkpoint, place)
    spec, sha256 = described(model), base_hash(moe_blocks(model))
    tokenise = tokeniser_of(folder, spec.vocab_size)
    return Pretrained(checkpoint_name(checkpoint), folder, model, spec, sha256, tokenise)


def checkpoint_name(checkpoint: str) -> str:
    """The last part of a checkpoint's folder or hub id."""
    return Path(checkpoint).expanduser().resolve().name


def check_type(model: nn.Module) -> None:
    """Refuse weights in fp16, which needs a scaled loss."""
    dtype = str(moe_blocks(model)[0].weight.dtype).removeprefix("torch.")
    if dtype not in TRAINED_TYPES:
        raise ValueError(
            f"model: found weights in {dtype}, expected {' or '.join(TRAINED_TYPES)}: the gradient "
            "of a mean over so many tokens is too small for it"
        )


class AllocatedCheckpoint:
    """A model of transformers with an allocator beside each router; see `AllocatedModel`."""

    def __init__(self, model: Any, options: Mapping[str, Any]) -> None:
        check_type(model)
        self.model = model
        self.applied = apply_router(model, AdaK.name, **options)
        spec, blocks = self.applied.model, self.applied.blocks
        self.base_routers = started_routers(policy("top-k"), spec, blocks)
        model.requires_grad_(False)
        for router in self.base_routers:
            router.eval().requires_grad_(False)
        for router in self.routers:
            router.count_bias.zero_()  # the paper's allocator has none
            router.allocator = nn.Parameter(router.allocator.float())

    @property
    def routers(self) -> list[AdaKRouter]:
        return [router for router in self.applied.routers if isinstance(router, AdaKRouter)]

    def passes(self, batch: Windows) -> Passes:
        """Whole passes: a part of a model of transformers is not run by itself."""
        windows = batch.to(input_device(self.model))

        def losses(routers: Sequence[Router]) -> Tensor:
            with plugged(self.applied, routers):
                logits = self.model(input_ids=windows[:, :-1], use_cache=False).logits
            return token_losses(logits, windows[:, 1:])

        return losses

    def tensors(self) -> Mapping[str, Tensor]:
        """The allocators alone: the rest is the checkpoint's own."""
        return {f"routers.{i}.allocator": router.allocator for i, router in enumerate(self.routers)}

    def frozen(self) -> Iterator[Tensor]:
        """Weights that `save_pretrained` would write, and those of the routers put in."""
        for module in self.model.modules():
            if not isinstance(module, Router):
                own = (
                    *module.named_parameters(recurse=False),
                    *module.named_buffers(recurse=False),
                )
                yield from (held(module, name) for name, _ in own)
        for router in (*self.applied.routers, *self.base_routers):
            for name, tensor in router.state_dict().items():
                if name != "allocator":
                    yield tensor


@contextmanager
def plugged(applied: AppliedRouter, routers: Sequence[Router]) -> Iterator[None]:
    """Within: the blocks of a model ask these routers."""
    places: list[Any] = [block.gate.moebench for block in applied.blocks]
    for place, router in zip(places, routers, strict=True):
        place.router = router
    try:
        yield
    finally:
        for place, router in zip(places, applied.routers, strict=True):
            place.router = router
