"""Times of a step of every setting of a pareto run, in interleaved rounds with the base.

All settings of a cell see the same text in the same order: real bytes through trained weights, so
that k and load are those of the text. A step is all decoder layers; embedding and head are not in
it. A decode step goes on from a cache that the setting's own layers filled.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moebench.compare import pairs
from moebench.measure.clocks import clock_for
from moebench.measure.energy.meter import QUICK, measure_energy
from moebench.measure.host import meter
from moebench.measure.latency import Covariates, Plan, Progress, Samples, Visit, measure_rounds
from moebench.measure.reference import reference_operation
from moebench.model.attention import KVCache
from moebench.model.decoder import StepMode, training_loss
from moebench.records.energy import Energy
from moebench.records.measurement import Reference
from moebench.records.pareto_run import CellTime, LatencyCell
from moebench.suite.pareto.settings import Ready
from moebench.train.base import Network
from moebench.train.text import Text

STREAM_TOKENS = 4096
"""Least tokens of a cell's stream of steps, which rounds walk through and start again."""
NOT_STARTED = Energy(None, None, method="none", missing="not asked for (--energy off)")
TARGET_VISIT = 0.02
"""Seconds that a visit of the fastest setting takes at least."""


@dataclass(frozen=True, eq=False)
class _Timed:
    """A setting in a cell: its network, its inputs, and its cache in decode."""

    network: Network
    cell: LatencyCell
    steps: Tensor
    """Bytes of each step, [steps, batch, new tokens]."""
    cache: KVCache | None

    def __call__(self, first_step: int, num_steps: int) -> None:
        network, mode = self.network, StepMode("decoder", self.cache)
        model = network.language_model
        for place in range(first_step, first_step + num_steps):
            tokens = self.steps[place % len(self.steps)]
            if self.cell.phase == "train":
                x = model.embedding(tokens).detach()
                y, routings = model.decoder(x, network.stack, network.experts, mode)
                torch.autograd.backward(training_loss(y, routings, x))
                network.zero_grad(set_to_none=True)
            else:
                with torch.inference_mode():
                    x = model.embedding(tokens)
                    model.decoder(x, network.stack, network.experts, mode)


@dataclass(frozen=True)
class Effort:
    """How long a cell is measured."""

    rounds: int
    has_energy: bool
    """Whether energy is metered, which takes some 10 s a setting where there is a counter."""


def cell_times(
    cell: LatencyCell, settings: Sequence[Ready], text: Text, effort: Effort, progress: Progress
) -> dict[str, CellTime]:
    """Time and energy of a step of each setting by its name, the first being the base."""
    device = settings[0].networks[0].language_model.embedding.weight.device
    visits: dict[str, Visit] = {
        ready.setting.name: _timed(ready.networks[0], cell, text) for ready in settings
    }
    for ready in settings:
        ready.networks[0].train(cell.phase == "train")
        _batches_of(ready.networks[0])
    operation = reference_operation(device)
    found = measure_rounds(
        visits,
        clock_for(device),
        Plan(
            budget=3600.0,
            stream_length=len(_steps(cell, text)[1]),
            min_rounds=effort.rounds,
            max_rounds=effort.rounds,
            min_visit=TARGET_VISIT,
            max_warmup_visits=3,
            in_parts=device.type == "cpu",
        ),
        progress,
        Covariates(operation, meter(device)),
    )
    energies = {
        name: measure_energy(visit, device, QUICK) if effort.has_energy else NOT_STARTED
        for name, visit in visits.items()
    }
    for ready in settings:
        ready.networks[0].eval()
    reference = Reference(operation.version, found.reference, found.reading)
    base = settings[0].setting.name
    return {
        name: _cell_time(
            cell, (name, base), (found.samples, found.failures), reference, energies[name]
        )
        for name in visits
    }


def _timed(network: Network, cell: LatencyCell, text: Text) -> _Timed:
    """A setting's visit; in decode its cache is filled by its own layers."""
    prompts, steps = _steps(cell, text)
    if cell.phase != "decode":
        return _Timed(network, cell, steps, None)
    model = network.language_model
    spec = model.model
    cache = KVCache(
        spec.attention, (spec.num_layers, cell.batch, cell.length + 1), model.head.weight.dtype
    )
    with torch.inference_mode():
        mode = StepMode("decoder", cache)
        model.decoder(model.embedding(prompts), network.stack, network.experts, mode)
    cache.length = cell.length
    return _Timed(network, cell, steps, cache)


def _steps(cell: LatencyCell, text: Text) -> tuple[Tensor, Tensor]:
    """Prompts [batch, length], and bytes of each step [steps, batch, new tokens], of test text."""
    num_steps = max(4, STREAM_TOKENS // cell.num_tokens)
    if cell.phase == "decode":
        prompts = text.windows("test", cell.batch, cell.length - 1)
        # Steps are alternatives to one another: the byte after the prompt, of other windows.
        after = text.windows("test", num_steps * cell.batch, 1)[:, :1]
        return prompts, after.view(num_steps, cell.batch, 1)
    windows = text.windows("test", 4 * cell.batch, cell.length - 1)
    return windows[:0], windows.view(4, cell.batch, cell.length)


def _batches_of(network: Network) -> None:
    """Let batch-aware routers take all tokens of a step for one batch, as serving does."""
    for router in network.stack:
        if hasattr(router, "positions"):
            router.positions = 1  # type: ignore[assignment]  # an attribute of some routers


def _cell_time(
    cell: LatencyCell,
    names: tuple[str, str],
    found: tuple[Samples, Mapping[str, Exception]],
    reference: Reference,
    energy: Energy,
) -> CellTime:
    """Time and energy of the first of two names, beside the second, the base."""
    name, base = names
    samples, failures = found
    joules = energy.joules, energy.missing
    if not samples.get(name):
        why = str(failures.get(name) or "no round was measured")
        return CellTime(cell, None, why, None, *joules)
    speedup = None
    if name != base and samples.get(base):
        speedup = pairs.speedup(samples[base], samples[name], (base, name), reference=reference)
    return CellTime(cell, pairs.latency(samples[name]), None, speedup, *joules)
