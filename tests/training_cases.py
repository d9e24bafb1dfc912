"""The timed cases of `bench_training.py`: training steps of ours and transformers', and forwards.

All start from the weights of one trained base and read the same text, so that tokens go to the
experts that a trained router sends them to. Needs transformers.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from moebench.measure.latency import Visit
from moebench.measure.memory import available_memory
from moebench.model.flops import torch_counter
from moebench.records.training import read_training
from moebench.report.pareto.training_curves import curve_titles
from moebench.routers.ada_k.train import AdaKTraining
from moebench.routers.top_k.module import TopKRouter
from moebench.spec.model import ModelSpec
from moebench.train.allocated_network import ada_k_on
from moebench.train.base import BaseOptions, BaseRecipe, Network, load_network
from moebench.train.export import export_base
from moebench.train.optimiser import Optimiser, Schedule
from moebench.train.recipes import check_base
from moebench.train.run import Trained, load_trained
from moebench.train.text import Text, Windows, load_text

IMPLEMENTATIONS = ("eager", "batched_mm", "grouped_mm")
"""Experts of transformers; grouped_mm is its default."""
OURS, PPO, THEIRS = "moebench", "ada-k, a PPO batch", "transformers"
STREAM = 4
"""Different batches that rounds walk through."""
MANY_STEPS = 1_000_000
"""Length of the schedule: timed steps lie at its start, where they hardly change the weights."""


@dataclass(frozen=True, eq=False)
class Trainings:
    """A trained base, the routers that were trained from it or beside it, and their text."""

    base: Trained
    routers: Mapping[str, Trained]
    """By title, the first seed of each."""
    text: Text

    @property
    def shape(self) -> tuple[int, int]:
        """Windows of a step and tokens of a window, as the base was trained."""
        return self.base.manifest.batch, self.base.manifest.window

    def training_batches(self) -> list[Windows]:
        """Batches of text for training, [batch, length + 1] each."""
        return [self.text.batch(0, step, self.shape) for step in range(STREAM)]

    def test_batches(self) -> list[Windows]:
        """Batches of test text, [batch, length + 1] each."""
        batch, length = self.shape
        return [*self.text.windows("test", STREAM * batch, length).split(batch)]


def load_trainings(folder: Path) -> Trainings:
    """The finished trainings in a folder; a ValueError unless one of them is a base."""
    found = {path.parent: read_training(path.parent) for path in folder.glob("*/manifest.json")}
    done = {path: m for path, m in found.items() if m.status in ("done", "ended-early")}
    bases = [path for path, m in done.items() if m.recipe == "base" and m.base is None]
    if len(bases) != 1:
        raise ValueError(f"{folder}: found {len(bases)} finished bases, expected one")
    base = load_trained(bases[0])
    text = load_text(None if base.manifest.text == "python-stdlib" else Path(base.manifest.text))
    check_base(base, text, base.manifest.model)
    others = [path for path, m in done.items() if m.router != "top-k"]
    others.sort(key=lambda path: done[path].seed)
    titles = curve_titles([done[path] for path in others])
    # Backwards, so that the first seed of a title stays.
    first = dict(reversed([*zip(titles, others, strict=True)]))
    return Trainings(base, {name: load_trained(first[name]) for name in sorted(first)}, text)


def training_visits(
    trainings: Trainings, warm_steps: int
) -> tuple[dict[str, Visit], Mapping[str, str]]:
    """Visits of training steps by case; and the cases that cannot run here, with the reason."""
    batches, base = trainings.training_batches(), trainings.base
    network = load_network(base)
    recipe = BaseRecipe(network, BaseOptions(), MANY_STEPS)
    visits = {OURS: _visit(recipe.step, batches)}
    skipped = {}
    for implementation in IMPLEMENTATIONS:
        case = f"{THEIRS}, {implementation}"
        if why := _too_large(base.manifest.model, trainings.shape, implementation):
            skipped[case] = why
            continue
        visits[case] = _visit(plain_step(mixtral(base, implementation)), batches)
    visits[PPO] = _visit(ppo_step(trainings, warm_steps), batches)
    return visits, skipped


def mixtral(base: Trained, implementation: str) -> nn.Module:
    """Transformers' Mixtral with the weights of a base, ready to be trained."""
    from transformers import MixtralForCausalLM

    router = load_network(base).stack[0]
    assert isinstance(router, TopKRouter)
    with tempfile.TemporaryDirectory() as folder:
        export_base(base, Path(folder))
        theirs: nn.Module = MixtralForCausalLM.from_pretrained(
            folder,
            output_router_logits=True,
            router_aux_loss_coef=router.balance_coefficient,
            attn_implementation="sdpa",
            experts_implementation=implementation,
        )
    return theirs.train()


def plain_step(theirs: nn.Module) -> Callable[[Windows, int], object]:
    """A training step as transformers' users write it, with the optimiser of ours."""
    options = BaseOptions()
    schedule = Schedule(options.learning_rate, options.warmup_steps, MANY_STEPS)
    optimiser = Optimiser(dict(theirs.named_parameters()), schedule, options.weight_decay)

    def step(batch: Windows, step: int) -> tuple[float, float]:
        loss = plain_losses(theirs, batch)[0]
        loss.backward()
        return float(loss.detach()), optimiser.step(step, options.largest_norm)

    return step


def plain_losses(theirs: nn.Module, batch: Windows) -> tuple[torch.Tensor, torch.Tensor]:
    """The whole loss that transformers computes, and the balance loss within it."""
    targets = batch[:, 1:].contiguous()
    out = theirs(input_ids=batch[:, :-1], labels=targets, shift_labels=targets, use_cache=False)
    return out.loss, out.aux_loss


def ppo_step(trainings: Trainings, warm_steps: int) -> Callable[[Windows, int], object]:
    """A batch of Ada-K's PPO, after a warm start of `warm_steps` batches."""
    options = AdaKTraining(warm_steps=warm_steps)
    recipe = ada_k_on(load_network(trainings.base), options, seed=1)
    for step in range(warm_steps):
        recipe.step(trainings.text.batch(1, step, trainings.shape), step)
    return lambda batch, step: recipe.step(batch, warm_steps + step)


def forward_visit(network: Network, batches: Sequence[Windows]) -> Visit:
    """A forward pass of the whole language model in evaluation."""
    network.eval()

    def forward(batch: Windows, _: int) -> None:
        with torch.inference_mode():
            network.language_model(batch[:, :-1], network.stack, network.experts)

    return _visit(forward, batches)


@torch.no_grad()
def forward_flops(network: Network, batches: Sequence[Windows]) -> float:
    """FLOPs of a token in the same forward passes, counted while they run."""
    network.eval()
    with torch_counter() as counter:
        for batch in batches:
            network.language_model(batch[:, :-1], network.stack, network.experts)
    return counter.get_total_flops() / sum(batch[:, 1:].numel() for batch in batches)


def _visit(step: Callable[[Windows, int], object], batches: Sequence[Windows]) -> Visit:
    def visit(first_step: int, num_steps: int) -> None:
        for place in range(first_step, first_step + num_steps):
            step(batches[place % len(batches)], place % len(batches))

    return visit


def _too_large(model: ModelSpec, shape: tuple[int, int], implementation: str) -> str:
    """Why an implementation cannot be run here; empty where it can.

    batched_mm copies the weights of its expert for every assignment, and keeps them for backward.
    """
    if implementation != "batched_mm":
        return ""
    a_layer = (
        shape[0] * shape[1] * model.top_k * 3 * model.hidden_size * model.intermediate_size * 4
    )
    needed = a_layer * (model.num_layers + 2)  # the gradients of one layer beside them
    free = available_memory(torch.device("cpu"))
    if needed <= 0.8 * free:
        return ""
    return f"not run: it needs about {needed / 1e9:.0f} GB, {free / 1e9:.0f} GB are free"
