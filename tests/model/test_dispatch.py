"""Models that accelerate spreads over devices and files, with a router of moebench applied.

The only device here is the CPU: hooks are forced where accelerate would leave them out, and weights
wait in memory or in files as they would beside a GPU.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("accelerate", reason="it spreads models over devices")
pytest.importorskip("transformers", reason="routers are put into models of transformers")

from accelerate import cpu_offload, disk_offload, dispatch_model  # noqa: E402
from identity import answer, difference, tiny_model  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

import moebench  # noqa: E402
from moebench.model.huggingface.blocks import moe_blocks  # noqa: E402
from moebench.model.huggingface.dispatch import input_device, places_of  # noqa: E402
from moebench.model.huggingface.router_file import base_hash  # noqa: E402

CPU = torch.device("cpu")
PLACES = ("hooked", "memory", "files")
FAMILY = {"hooked": "mixtral", "memory": "gpt_oss", "files": "glm4_moe"}

pytestmark = pytest.mark.filterwarnings("ignore")
"""Of transformers, about generation settings of the tiny copies."""


def spread(model: nn.Module, place: str, folder: Path) -> nn.Module:
    """The model, with accelerate's hooks in its modules."""
    if place == "hooked":
        return dispatch_model(model, {"": "cpu"}, main_device="cpu", force_hooks=True)
    if place == "memory":
        return cpu_offload(model, execution_device=CPU)
    return disk_offload(model, str(folder), execution_device=CPU)


@pytest.mark.parametrize("place", PLACES)
def test_a_spread_model_answers_as_a_whole_one(place: str, tmp_path: Path) -> None:
    family = FAMILY[place]
    whole = tiny_model(family, torch.float32)
    moebench.apply_router(whole, "ada-k")
    expected = answer(whole)
    model = spread(tiny_model(family, torch.float32), place, tmp_path)
    before = answer(model)
    moebench.apply_router(model, "ada-k")
    # Matrices that are mapped from files are aligned otherwise, and rounded otherwise.
    assert difference(answer(model), expected) <= (1e-5 if place == "files" else 0)
    waiting = {p.device.type for block in moe_blocks(model) for p in block.experts.parameters()}
    assert waiting == {"cpu" if place == "hooked" else "meta"}
    assert input_device(model) == CPU
    moebench.remove_router(model)
    assert difference(answer(model), before) == 0


@pytest.mark.parametrize("place", PLACES)
def test_a_router_file_fits_its_base_wherever_the_weights_wait(place: str, tmp_path: Path) -> None:
    whole = tiny_model("mixtral", torch.float32)
    applied = moebench.apply_router(whole, "ada-k")
    with torch.no_grad():
        for router in applied.routers:
            router.allocator.normal_()
    moebench.save_router(whole, tmp_path / "router.safetensors")
    model = spread(tiny_model("mixtral", torch.float32), place, tmp_path / "files")
    assert base_hash(moe_blocks(model)) == base_hash(applied.blocks)
    moebench.load_router(model, tmp_path / "router.safetensors")
    assert difference(answer(model), answer(whole)) <= (1e-5 if place == "files" else 0)
    moebench.save_router(model, tmp_path / "again.safetensors")
    first, again = (load_file(tmp_path / f"{name}.safetensors") for name in ("router", "again"))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_weights_that_are_nowhere_are_refused() -> None:
    model = tiny_model("mixtral", torch.float32).to("meta")
    with pytest.raises(ValueError, match=r"weight: found no data, expected it in memory"):
        moebench.apply_router(model, "ada-k")


def test_the_places_of_a_model_are_named_once_each() -> None:
    class Spread:
        hf_device_map: dict[str, Any] = {"a": 0, "b": 1, "c": 1, "d": "cpu", "e": "disk"}

    assert places_of(Spread()) == "cuda:0, cuda:1, cpu, disk"


@pytest.mark.slow
@pytest.mark.parametrize("router", ["ada-k", "adamoe"])
def test_layers_that_fsdp_shards_learn_as_whole_ones(router: str) -> None:
    """Two processes, each with half of every weight: the loss and every gradient."""
    program = Path(__file__).with_name("sharded.py")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    folders = [str(program.parents[2]), str(program.parents[1])]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *launch, str(program), router],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(folders),
            "OMP_NUM_THREADS": "1",
            "PYTHONFAULTHANDLER": "1",
        },
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("gradients are those of the whole model") == 2
