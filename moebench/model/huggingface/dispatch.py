"""Where accelerate puts the weights of a model that one device does not hold.

`device_map` spreads whole layers over GPUs, then over the host's memory, then over files. A module
whose weights are elsewhere holds none while it waits: accelerate's hook on the module brings them
for its forward pass alone, and moves what comes in to the module's device.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn

Placement = torch.device | str
"""One device for a whole model, or accelerate's plan for several, by its name."""


def input_device(model: Any) -> torch.device:
    """The device that reads the tokens of a model."""
    return execution_device(model.get_input_embeddings(), "weight")


def places_of(model: Any) -> str:
    """Where the weights of a model are, such as "cuda:0, cuda:1, cpu, disk"."""
    spread = getattr(model, "hf_device_map", None) or {"": model.device}
    names = (f"cuda:{place}" if isinstance(place, int) else str(place) for place in spread.values())
    return ", ".join(dict.fromkeys(names))


def execution_device(module: nn.Module, name: str) -> torch.device:
    """The device on which a module computes with its tensor of this name."""
    tensor: Tensor = getattr(module, name)
    hook = _alignment(module)
    if tensor.device.type != "meta" or hook is None:
        return tensor.device
    return torch.device(hook.execution_device)


def held(module: nn.Module, name: str) -> Tensor:
    """A module's parameter or buffer of this name with its data, wherever they wait.

    Raises:
        ValueError: it has no data anywhere.
    """
    tensor: Tensor = getattr(module, name)
    if tensor.device.type != "meta":
        return tensor
    hook = _alignment(module)
    if hook is None or hook.weights_map is None:
        raise ValueError(f"{name}: found no data, expected it in memory or where accelerate put it")
    found: Tensor = hook.weights_map[name]
    return found


def keep_hook(module: nn.Module, original: nn.Module) -> None:
    """Run accelerate's hook of the original around the forward pass of the module in its place."""
    hook = original.__dict__.get("_hf_hook")
    for name in ("forward", "_old_forward"):
        module.__dict__.pop(name, None)
    if hook is not None:
        module.__dict__["forward"] = functools.partial(_hooked, module, hook)


def _hooked(module: nn.Module, hook: Any, *args: Any, **kwargs: Any) -> Any:
    args, kwargs = hook.pre_forward(module, *args, **kwargs)
    return hook.post_forward(module, type(module).forward(module, *args, **kwargs))


def _alignment(module: nn.Module) -> Any:
    """The hook of accelerate that moves a module's weights; None: there is none."""
    hook = getattr(module, "_hf_hook", None)
    for one in getattr(hook, "hooks", (hook,)):
        if hasattr(one, "execution_device"):
            return one
    return None
