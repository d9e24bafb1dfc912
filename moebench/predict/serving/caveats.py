"""Why a predicted step should be read with care, apart from its kernels' calibration."""

from collections.abc import Mapping

from moebench.predict.serving.deployment import Deployment
from moebench.predict.serving.shapes import shape_caveats
from moebench.records.results import Caveat
from moebench.spec.weight_types import weight_type
from moebench.units import Bytes, text

RAGGED = Caveat(
    "ragged-routing",
    "every measured row had the same k for all tokens of a call",
    "the prediction takes it that a token's missing experts cost nothing in this kernel",
    "measure the router on the device with the suite",
)
TRAINING = Caveat(
    "backward-not-measured",
    "only forward passes were measured",
    "a backward pass is priced from the forward one: matrix products twice, attention 2.5 times, "
    "communication once; what a trainer adds in a whole model is fitted to six published points",
    "measure the training step on the device with the suite",
)
DRAFTING = Caveat(
    "drafting-not-priced",
    "a draft is given by its length and acceptance alone",
    "the step verifies the drafted tokens; the time to draft them is not in it",
    "add what the drafter takes a step: --engine-overhead",
)


def step_caveats(
    deployment: Deployment, is_ragged: bool, peaks: Mapping[int, Bytes]
) -> tuple[Caveat, ...]:
    """Caveats of a deployment's steps; `is_ragged`: tokens differ in k; `peaks` are by batch."""
    found = [*_converted(deployment), *shape_caveats(deployment)]
    if is_ragged:
        found.append(RAGGED)
    if deployment.phase == "train":
        found.append(TRAINING)
    if deployment.draft is not None:
        found.append(DRAFTING)
    return (*found, *_out_of_memory(deployment, peaks))


def _converted(deployment: Deployment) -> tuple[Caveat, ...]:
    """Caveat of a checkpoint whose own type of weights the device does not multiply."""
    d = deployment
    if d.dtype is not None or d.phase == "train":
        return ()
    pairs = [(d.model.other_weights, d.other_weights)]
    if not d.is_dense:
        pairs.insert(0, (d.model.expert_weights, d.expert_weights))
    converted = dict.fromkeys(
        (weight_type(name).name, run) for name, run in pairs if weight_type(name).name != run
    )
    return tuple(
        Caveat(
            "converted-weights",
            f"{d.model.name} is published in {published}, in which {d.hardware.name} cannot "
            "multiply",
            f"priced in {run}, to which these weights are converted",
            "another type of weights (--dtype int4), or a GPU that has the arithmetic",
        )
        for published, run in converted
    )


def _out_of_memory(deployment: Deployment, peaks: Mapping[int, Bytes]) -> tuple[Caveat, ...]:
    """Caveat of batches whose peak memory exceeds a device's; `peaks` are by batch."""
    hardware = deployment.hardware
    over = [batch for batch, peak in peaks.items() if peak > hardware.memory_capacity]
    if not over:
        return ()
    return (
        Caveat(
            "out-of-memory",
            f"{text(peaks[over[0]], 'size')} a device at batch {over[0]}"
            f"{' and more' if len(over) > 1 else ''}, "
            f"where {hardware.name} has {text(hardware.memory_capacity, 'size')}",
            "the step does not fit; its time is what it would be if it did",
            "more devices (--tp, --ep), narrower weights (--dtype), or a smaller --context",
        ),
    )
