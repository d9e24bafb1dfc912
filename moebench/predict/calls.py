"""Predictions as Python calls: what `python -m moebench.predict` answers for one batch."""

from typing import Any

from moebench.predict.serving.deployment import Deployment, DeploymentLevel
from moebench.predict.serving.speedup import Speedup, speedups
from moebench.routers.policy import Policy, policy
from moebench.spec.hardware import HardwareSpec, load_hardware
from moebench.spec.model import ModelSpec, load_model


def predict_layer(
    model: str | ModelSpec,
    hardware: str | HardwareSpec,
    router: str | Policy = "ada-k",
    batch: int = 1,
    **deployment: Any,
) -> Speedup:
    """Predict one MoE layer on a GPU: latency, speedup over the model's top-k, energy, memory.

    Args:
        model: a shipped name, a TOML file, or a description.
        hardware: the same of a GPU.
        router: a name (with the options of its paper), or a policy.
        batch: sequences in flight.
        deployment: further fields of `Deployment`: phase, context, dtype, kernel, skew, ...

    Raises:
        ValueError: an unknown name, or a value that cannot be.
    """
    return _predict("moe", (model, hardware), router, batch, deployment)


def predict_model(
    model: str | ModelSpec,
    hardware: str | HardwareSpec,
    router: str | Policy = "ada-k",
    batch: int = 1,
    **deployment: Any,
) -> Speedup:
    """Predict a step of the whole network, composed of its layers; see `predict_layer`.

    `tensor_parallel` and `expert_parallel` say over how many GPUs it is spread.
    """
    return _predict("model", (model, hardware), router, batch, deployment)


def _predict(
    level: DeploymentLevel,
    asked: tuple[str | ModelSpec, str | HardwareSpec],
    router: str | Policy,
    batch: int,
    fields: dict[str, Any],
) -> Speedup:
    model, hardware = asked
    deployment = Deployment(
        load_model(model) if isinstance(model, str) else model,
        load_hardware(hardware) if isinstance(hardware, str) else hardware,
        level=level,
        **fields,
    )
    own = policy(router) if isinstance(router, str) else router
    return speedups(deployment, own, [batch])[0]
