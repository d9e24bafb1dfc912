"""The time that training a router's allocators takes, all else frozen: Ada-K's PPO.

Nothing but the allocators learns, so that no pass goes back through the network: a batch costs
forward passes, and linear algebra on what the routers read. Each sample is run once for the labels
of the warm start, once with the model's own counts and once with sampled ones. A trainer that does
not keep what the routers read runs the network again in every epoch of PPO: the upper end.

Samples are as long as the paper allows; their mean length, which is not stated, is at least that of
the sample for which it counts FLOPs: the lower end.
"""

import math
from dataclasses import dataclass

from moebench.predict.claims.papers import Claim, Paper, RouterTraining
from moebench.predict.kernels.layer import ACTIVATION_BYTES
from moebench.predict.serving.deployment import Deployment
from moebench.predict.serving.flops import BACKWARD
from moebench.predict.serving.parallelism import Parallelism
from moebench.predict.serving.speedup import speedups
from moebench.predict.serving.trainer import Training
from moebench.predict.serving.training import STREAM, TRAINING_STAGES
from moebench.routers.policy import policy
from moebench.spec.hardware import HardwareSpec, load_hardware
from moebench.spec.model import ModelSpec, load_model
from moebench.spec.parameters import router_parameters
from moebench.units import Flops, Joules, Seconds

WARM_START = 1
"""Forward passes, and epochs of the allocators, of the warm start: one pass over the samples."""
FORWARDS = 2
"""Forward passes of PPO: the model's own counts, whose log p is the baseline, and sampled ones."""


@dataclass(frozen=True)
class TrainingCost:
    """What training a router costs on all GPUs together."""

    seconds: Seconds
    """Time with samples of the greatest length, and what the routers read kept for the epochs."""
    low: Seconds
    """With samples as short as the paper's own, at the lower end of the prediction's interval."""
    high: Seconds
    """Time with the longest samples and nothing kept, at the upper end of the interval."""
    flops: Flops
    """FLOPs of the training behind `seconds`, closed form."""
    most_energy: Joules | None
    """Energy of `seconds` at the GPUs' power limit, which it cannot exceed."""


@dataclass(frozen=True)
class _Forward:
    """One forward pass of a trainer over a batch."""

    seconds: Seconds
    low: float
    """Ends of the 90 % interval over `seconds`."""
    high: float
    flops: Flops


def router_training(paper: Paper, claim: Claim, devices_of_copy: int) -> TrainingCost:
    """Cost of training the allocators of a claim's model on the paper's GPUs.

    Args:
        paper: its GPU, and the tokens of its sample.
        claim: with a recipe.
        devices_of_copy: GPUs that hold the weights once; the copies share the batch.
    """
    recipe = claim.training
    assert recipe is not None and claim.model and paper.hardware and paper.sample_tokens
    model, machine = load_model(claim.model), load_hardware(paper.hardware)
    batches = math.ceil(recipe.samples / recipe.batch)
    forwards = WARM_START + FORWARDS
    long, short = (
        _forward(model, machine, recipe, devices_of_copy, tokens)
        for tokens in (recipe.longest, paper.sample_tokens)
    )
    algebra = allocator_time(model, machine, recipe, recipe.longest)
    seconds = batches * (forwards * long.seconds + algebra)
    again = batches * ((forwards + recipe.epochs) * long.seconds + algebra)
    epochs = WARM_START + recipe.epochs
    tokens = recipe.batch * recipe.longest
    limit = machine.power_limit
    return TrainingCost(
        seconds=seconds,
        low=batches * forwards * short.seconds * short.low,
        high=again * long.high,
        flops=batches * (forwards * long.flops + epochs * allocator_flops(model, tokens)),
        most_energy=None if limit is None else limit * recipe.devices * seconds,
    )


def allocator_flops(model: ModelSpec, num_tokens: int) -> Flops:
    """FLOPs of one epoch of all allocators: their product, and the gradient of their weights.

    Not counted: softmax, ratio and clip, and the optimizer.
    """
    return 2 * 2.0 * num_tokens * router_parameters(model)


def allocator_time(
    model: ModelSpec, hardware: HardwareSpec, recipe: RouterTraining, length: int
) -> Seconds:
    """Time of a batch's epochs, in which what the routers read is read twice from memory."""
    size = ACTIVATION_BYTES * model.hidden_size * model.num_moe_layers * recipe.batch * length
    epochs = WARM_START + recipe.epochs
    return epochs * 2 * size / (STREAM * hardware.memory_bandwidth * recipe.devices)


def _forward(
    model: ModelSpec, hardware: HardwareSpec, recipe: RouterTraining, split: int, length: int
) -> _Forward:
    """A trainer's forward pass over a batch, whose copies of the model share its samples."""
    copies = recipe.devices // split
    deployment = Deployment(
        model,
        hardware,
        phase="train",
        level="model",
        context=length,
        parallel=Parallelism(split),
        training=Training(copies=copies),
    )
    sequences = math.ceil(recipe.batch / copies)
    (row,) = speedups(deployment, policy("top-k"), [sequences])
    e = row.estimate
    assert e.latency_low is not None and e.latency_high is not None
    seconds = sum(time for name, time in e.by_stage.items() if name not in TRAINING_STAGES)
    ends = e.latency_low / e.latency, e.latency_high / e.latency
    return _Forward(seconds, *ends, copies * e.flops / (1 + BACKWARD))
