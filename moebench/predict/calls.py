"""Predictions as Python calls: what `python -m moebench.predict` answers for one batch."""

from dataclasses import fields
from typing import Any

from moebench.predict.serving.deployment import Deployment
from moebench.predict.serving.no_router import NO_ROUTER
from moebench.predict.serving.parallelism import Parallelism
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

    Names are shipped ones or TOML files; a router's name stands for the options of its paper.
    `batch` is sequences in flight, `deployment` further fields of `Deployment` (phase, dtype, ...)
    and of `Parallelism` (tensor_parallel, gpus, ...).
    """
    parallel = {
        field.name: deployment.pop(field.name)
        for field in fields(Parallelism)
        if field.name in deployment
    }
    asked = Deployment(
        load_model(model) if isinstance(model, str) else model,
        load_hardware(hardware) if isinstance(hardware, str) else hardware,
        parallel=Parallelism(**parallel),
        **deployment,
    )
    own = policy(router) if isinstance(router, str) else router
    if asked.is_dense:
        own = NO_ROUTER
    return speedups(asked, own, [batch])[0]


def predict_model(
    model: str | ModelSpec,
    hardware: str | HardwareSpec,
    router: str | Policy = "ada-k",
    batch: int = 1,
    **deployment: Any,
) -> Speedup:
    """Predict a step of the whole network, composed of its layers; see `predict_layer`."""
    return predict_layer(model, hardware, router, batch, level="model", **deployment)
