"""Replace a module of somebody else's model by one of ours that holds the same tensors."""

from typing import TypeVar, cast

from torch import nn

from moebench.model.huggingface.dispatch import keep_hook

Ours = TypeVar("Ours", bound=nn.Module)


def replacement(module: nn.Module, ours: type[Ours]) -> Ours:
    """A module of class `ours` and of the module's own class, with the module's own state.

    It shares the tables of parameters, buffers and hooks, so that what happens to one of the two
    (moved, cast, hooked) happens to both, and the original can be put back at any time. It is an
    instance of the original's class, by which transformers finds the routers whose logits it
    records. Children are its own to add.
    """
    kind = type(module)
    made: nn.Module = ours.__new__(type(f"{ours.__name__}Of{kind.__name__}", (ours, kind), {}))
    made.__dict__.update(module.__dict__)
    made.__dict__["_modules"] = dict(module.__dict__["_modules"])
    keep_hook(made, module)
    return cast(Ours, made)
