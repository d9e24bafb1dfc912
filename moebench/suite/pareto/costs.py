"""What a setting costs: FLOPs at the load that it was seen with, predicted times, training."""

import re
from collections.abc import Sequence

from moebench.experts.catalogue import executing
from moebench.predict.learned import learned_caveats, learned_policy
from moebench.predict.serving.deployment import Deployment
from moebench.predict.serving.speedup import speedups
from moebench.records.pareto_run import PredictedRatio, TrainingCost
from moebench.records.router_use import RouterUse
from moebench.records.training import TrainingManifest
from moebench.routers.policy import Policy, policy
from moebench.spec.carried_point import carried_point
from moebench.spec.case import Workload
from moebench.spec.hardware import load_hardware
from moebench.spec.layer import layer_ops
from moebench.spec.learned_point import LearnedPoint
from moebench.spec.load import ExpertLoad
from moebench.spec.model import ModelSpec, load_model
from moebench.spec.ops import total_flops
from moebench.suite.pareto.plan import ParetoSuite, Setting
from moebench.suite.pareto.settings import Ready
from moebench.train.learned_layers import learned_layers
from moebench.train.quality import Evaluation
from moebench.units import Flops

CARRIED_TO = "mixtral-8x7b"
"""The model that predictions carry an operating point over to: 8 experts, top-2, as tiny."""
NO_JOULES = "training was not metered"


def flops_per_token(ready: Ready, use: RouterUse, window: int) -> Flops:
    """FLOPs of a token in all decoder layers, at the mean k of each layer; closed form.

    The context is that of a window: a token attends to half of it on average.
    """
    model = ready.networks[0].language_model.model
    router = policy(ready.setting.router, ready.options)
    return sum(
        _layer_flops(model, router, window, [share * layer.mean_k for share in layer.expert_shares])
        for layer in use.layers
    )


def _layer_flops(
    model: ModelSpec, router: Policy, window: int, marginals: Sequence[float]
) -> Flops:
    """FLOPs of a token in one decoder layer, given the chance that it runs each expert."""
    workload = Workload("prefill", "decoder", 1, window, dtype="float32")
    assignments = tuple(chance * window for chance in marginals)
    load = ExpertLoad(assignments, window, float(sum(count > 0 for count in assignments)))
    ops = router.ops(model, window, "float32")
    layer = layer_ops(model, workload, ops, load, executing("grouped", "prefill"))
    return total_flops(layer) / window


def point_name(setting: Setting) -> str:
    """Name of a setting's learned operating point: "tiny-ada-k-regularisation-0.01"."""
    return "tiny-" + re.sub(r"[^a-z0-9.]+", "-", setting.name.lower())


def learned_point(ready: Ready, found: Evaluation, text_sha256: str) -> LearnedPoint:
    """The operating point that a setting's first seed shows on the test text."""
    model: ModelSpec = ready.networks[0].language_model.model
    first = ready.trained[0].folder.name if ready.trained else "calibrated"
    return LearnedPoint(
        point_name(ready.setting),
        ready.setting.router,
        f"{ready.setting.name} ({first}), {found.losses.size:,} bytes of test text",
        model.num_experts,
        model.top_k,
        found.losses.size,
        text_sha256,
        learned_layers(found, model.top_k),
    )


def predictions(
    point: LearnedPoint, ready: Ready, suite: ParetoSuite
) -> tuple[PredictedRatio, ...]:
    """Predicted time of a decode step over that of the model's own top-k, whole decoder layers.

    Of the trained model itself, and of `CARRIED_TO` with the point carried over.
    """
    own = ready.networks[0].language_model.model
    found = []
    for model in (own, load_model(CARRIED_TO)):
        caveats = tuple(one.seen for one in learned_caveats(point, model))
        for name in suite.hardware:
            deployment = Deployment(model, load_hardware(name), level="decoder")
            for batch in suite.predicted_batches:
                ratio, missing = _predicted(point, ready, deployment, batch)
                found.append(PredictedRatio(model.name, name, batch, ratio, missing, caveats))
    return tuple(found)


def _predicted(
    point: LearnedPoint, ready: Ready, deployment: Deployment, batch: int
) -> tuple[float | None, str | None]:
    """The predicted ratio at a batch, or why there is none."""
    if ready.setting.router == "oea":
        return None, "a choice that depends on the batch is not priced"
    model = deployment.model
    try:
        # Which k each layer has is in the point; choosing a fixed one costs the same for any.
        is_fixed = ready.setting.router == "fixed-k"
        router = policy("fixed-k") if is_fixed else learned_policy(point, model)
        routing = carried_point(point, model, 0, model.num_experts)
        return 1 / speedups(deployment, router, [batch], routing)[0].value, None
    except ValueError as error:
        return None, str(error)


def training_cost(ready: Ready) -> TrainingCost | None:
    """What the trainings of a setting took; None where nothing was trained for it."""
    if not ready.trained or ready.setting.recipe == "base":
        return None
    manifests = [each.manifest for each in ready.trained]
    return TrainingCost(
        sum(m.tokens_done for m in manifests),
        sum(m.seconds for m in manifests),
        sum(training_flops(m) for m in manifests),
        None,
        None,
        NO_JOULES,
    )


def training_flops(manifest: TrainingManifest) -> Flops:
    """FLOPs of a training's passes over the network at the base's k; a backward pass counts two.

    Not counted: the optimiser, and the allocators' own passes, which are thousands of times
    smaller than the network's.
    """
    model = manifest.model
    even = [model.top_k / model.num_experts] * model.num_experts
    layer = _layer_flops(model, policy("top-k"), manifest.window, even)
    head = 2.0 * model.hidden_size * model.vocab_size
    return manifest.tokens_done * _passes(manifest) * (model.num_layers * layer + head)


def _passes(manifest: TrainingManifest) -> float:
    """Forward passes of a token in training; a backward pass counts two."""
    if manifest.trained == "everything":
        return 3.0
    if manifest.recipe == "ada-k":
        steps = manifest.tokens_done / (manifest.batch * manifest.window)
        return 2.0 - min(1.0, float(manifest.options["warm_steps"]) / steps)
    # Counterfactual regression: the base, and each layer alone with each smaller count.
    return 1.0 + manifest.model.num_layers * (manifest.model.top_k - 1)
