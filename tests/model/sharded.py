"""A tiny Mixtral with a router in two processes that each hold half of every weight, by FSDP.

A program of its own, which torch.distributed.run starts twice. It compares the loss and every
gradient with those of the whole model. Accelerate calls this `fully_shard` on GPUs, and does not
shard on processors.
"""

import os
import sys
from typing import Any

import torch
from identity import prompt, tiny_model
from torch import Tensor, distributed
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from moebench.model.huggingface.apply import apply_router


def loss_and_gradients(model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of predicting a prompt, and the gradient of every parameter that has one."""
    given = prompt()
    loss = model(**given, labels=given["input_ids"]).loss
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), {
        name: grad.full_tensor() if isinstance(grad, DTensor) else grad
        for name, grad in found.items()
    }


def main(router: str) -> None:
    distributed.init_process_group("gloo")
    whole, model = (tiny_model("mixtral", torch.float32) for _ in range(2))
    for one in (whole, model):
        torch.manual_seed(0)
        apply_router(one, router)
    loss, gradients = loss_and_gradients(whole)
    for layer in (*model.model.layers, model):
        fully_shard(layer)
    parameters = list(model.parameters())
    assert all(isinstance(p, DTensor) for p in parameters), "every weight is sharded"
    held = sum(p.to_local().numel() for p in parameters if isinstance(p, DTensor))
    assert held < 0.6 * sum(p.numel() for p in parameters)
    found, sharded_gradients = loss_and_gradients(model)
    torch.testing.assert_close(found, loss)
    assert sharded_gradients.keys() == gradients.keys(), "the same parameters learn"
    for name, gradient in gradients.items():
        torch.testing.assert_close(sharded_gradients[name], gradient)
    rank, size = distributed.get_rank(), distributed.get_world_size()
    print(f"process {rank} of {size}: {len(gradients)} gradients are those of the whole model")
    distributed.barrier()
    distributed.destroy_process_group()
    sys.stdout.flush()
    # A thread of gloo that meets the ending interpreter can abort the process.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
