"""FLOPs of training Ada-K's allocators on a model whose other weights are frozen.

A batch takes a forward pass with the model's top-k and one with drawn counts. PPO's epochs follow.
On stored router inputs they are products of the allocators alone; the paper, which has no code,
can be read as running the model again in each epoch, with the stored counts. Not counted: a
backward pass through the model, which no gradient needs, and the warm start.

**Source** Yue et al., ICLR 2025, Equations 6 to 10; Table 11: 2 epochs.
"""

from dataclasses import dataclass, replace

from moebench.predict.claims.arithmetic import model_flops
from moebench.routers.ada_k.policy import AdaK
from moebench.routers.policy import policy
from moebench.spec.model import ModelSpec
from moebench.units import Flops


@dataclass(frozen=True)
class AllocatorTraining:
    """One pass over samples of equal length."""

    num_samples: int
    sample_tokens: int
    mean_k: float
    """Mean experts per token of the forward with drawn counts, over the training."""
    epochs: int = 2
    runs_model_again: bool = False
    """Whether every epoch runs the model with the stored counts, as without stored inputs."""


@dataclass(frozen=True)
class AllocatorFlops:
    """FLOPs of a training by what they are for; 2 a multiply-add."""

    default_forward: Flops
    drawn_forward: Flops
    """All forwards with drawn counts: one a batch, and one more in each epoch that runs again."""
    updates: Flops
    """Products of the allocators in PPO's epochs."""

    @property
    def total(self) -> Flops:
        return self.default_forward + self.drawn_forward + self.updates


def allocator_training_flops(model: ModelSpec, training: AllocatorTraining) -> AllocatorFlops:
    """FLOPs of an allocator training on a model, attention scores counted in full."""
    tokens, samples = training.sample_tokens, training.num_samples
    router = replace(AdaK(), mean_k=training.mean_k)
    drawn = 1 + training.epochs * training.runs_model_again
    return AllocatorFlops(
        samples * model_flops(model, policy("top-k"), tokens),
        samples * drawn * model_flops(model, router, tokens),
        training.epochs * router.update_flops(model, samples * tokens),
    )
