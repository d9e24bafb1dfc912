"""Checkpoints in the Hugging Face layout: what is read, and what is refused before a tensor is."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from checkpoints import built, written

from moebench.model.checkpoint.export import mixtral_config
from moebench.model.checkpoint.files import INDEX, WHOLE, Checkpoint, open_checkpoint
from moebench.model.checkpoint.layers import (
    base_gates,
    check_layers,
    chosen_layers,
    identity,
    load_decoder,
)
from moebench.model.checkpoint.tensor_file import TensorFile
from moebench.model.language_model import LanguageModel
from moebench.routers.routing import Router
from moebench.spec.model import ModelSpec

W2 = "model.layers.1.block_sparse_moe.experts.3.w2.weight"


@pytest.fixture
def exported(tiny: ModelSpec) -> tuple[LanguageModel, Sequence[Router]]:
    return built(tiny)


@pytest.fixture
def folder(exported: tuple[LanguageModel, Sequence[Router]], tmp_path: Path) -> Path:
    """A checkpoint of Mixtral's family with random weights, in one file."""
    return written(*exported, tmp_path / "tiny-mixtral")


def sharded(folder: Path) -> Path:
    """The same checkpoint with an index and two files: layers 0 and 1, and the rest."""
    tensors = safetensors.torch.load_file(folder / WHOLE)
    files = {n: f"model-0000{1 + (n[13:14] in '23')}-of-00002.safetensors" for n in tensors}
    for file in set(files.values()):
        part = {name: tensors[name] for name in tensors if files[name] == file}
        safetensors.torch.save_file(part, folder / file)
    (folder / WHOLE).unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": files}))
    return folder


@pytest.fixture
def checkpoint(folder: Path) -> Checkpoint:
    return open_checkpoint(str(folder))


@pytest.mark.parametrize("lay_out", [lambda folder: folder, sharded])
def test_layers_are_those_that_were_exported(
    lay_out: Callable[[Path], Path],
    folder: Path,
    exported: tuple[LanguageModel, Sequence[Router]],
) -> None:
    """Layers 3 and 1, in this order, to the bit: from one file and from two."""
    found, (language_model, routers) = open_checkpoint(str(lay_out(folder))), exported
    decoder, gates = load_decoder(found, (3, 1), torch.float32), base_gates(found, (3, 1))
    for index, number in enumerate((3, 1)):
        own = dict(language_model.decoder.layer(number).named_parameters())
        for name, parameter in decoder.layer(index).named_parameters():
            assert torch.equal(parameter, own.pop(name)), name
        assert not own
        assert torch.equal(gates[index].weight, torch.as_tensor(routers[number].weight))


def test_the_model_is_the_exported_one(checkpoint: Checkpoint, tiny: ModelSpec) -> None:
    """Its config says what the network is; experts of layers that are not asked for are unread."""
    read = checkpoint.model
    same = ("hidden_size", "intermediate_size", "num_experts", "top_k", "vocab_size", "gate")
    assert [getattr(read, name) for name in same] == [getattr(tiny, name) for name in same]
    assert read.attention == tiny.attention and read.name == "tiny-mixtral"


@pytest.mark.parametrize(
    ("asked", "number", "layers"),
    [(None, 1, (1,)), (None, 2, (1, 2)), (None, 9, (0, 1, 2, 3)), ((3, 0), 1, (3, 0))],
)
def test_layers_come_from_the_middle_unless_named(
    asked: tuple[int, ...] | None, number: int, layers: tuple[int, ...], checkpoint: Checkpoint
) -> None:
    assert chosen_layers(checkpoint, asked, number) == layers


def test_a_layer_that_is_not_there_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(ValueError, match=r"--layers: found 4, expected layers .* from 0 to 3"):
        chosen_layers(checkpoint, (4,), 1)
    dense = replace(checkpoint.model, num_dense_layers=1, dense_intermediate_size=8)
    with pytest.raises(ValueError, match="found 0, which has no experts"):
        chosen_layers(replace(checkpoint, model=dense), (0,), 1)


def test_identity_changes_with_a_router(folder: Path, checkpoint: Checkpoint) -> None:
    """Two checkpoints of one shape differ, and one is itself."""
    before = identity(checkpoint, (1,))
    assert identity(open_checkpoint(str(folder)), (1,)) == before != identity(checkpoint, (2,))
    tensors = safetensors.torch.load_file(folder / WHOLE)
    tensors["model.layers.1.block_sparse_moe.gate.weight"][0, 0] += 1
    safetensors.torch.save_file(tensors, folder / WHOLE)
    assert identity(open_checkpoint(str(folder)), (1,)) != before


def refusal(folder: Path, layers: tuple[int, ...] = (1,)) -> str:
    """The message with which a folder, or its layers, are refused."""
    with pytest.raises(ValueError) as error:
        check_layers(open_checkpoint(str(folder)), layers)
    return str(error.value)


def test_a_missing_shard_is_named_where_a_layer_needs_it(folder: Path) -> None:
    """Layers in the shards that are there can be run."""
    second = sharded(folder) / "model-00002-of-00002.safetensors"
    second.unlink()
    check_layers(open_checkpoint(str(folder)), (0, 1))
    assert refusal(folder, (1, 2)).startswith(f"{second}: no such file; fetch it again")


def test_a_tensor_of_another_shape_is_named(folder: Path) -> None:
    tensors = safetensors.torch.load_file(folder / WHOLE)
    tensors[W2] = torch.zeros(32, 15)
    safetensors.torch.save_file(tensors, folder / WHOLE)
    assert refusal(folder) == (
        f"{folder / WHOLE}: {W2}: found shape [32, 15], expected [32, 16] by config.json"
    )


@pytest.mark.parametrize("name", [W2, "model.layers.1.block_sparse_moe.gate.weight"])
def test_a_tensor_that_is_not_there_is_named(name: str, folder: Path) -> None:
    tensors = safetensors.torch.load_file(folder / WHOLE)
    del tensors[name]
    safetensors.torch.save_file(tensors, folder / WHOLE)
    assert "model.layers.1." in refusal(folder) and "found no" in refusal(folder)


def test_a_tensor_that_is_not_where_the_index_says_is_named(folder: Path) -> None:
    index = json.loads((sharded(folder) / INDEX).read_text())
    index["weight_map"][W2] = "model-00002-of-00002.safetensors"
    (folder / INDEX).write_text(json.dumps(index))
    assert f"model-00002-of-00002.safetensors: found no tensor {W2}" in refusal(folder)


@pytest.mark.parametrize("length", [0, 4, 100, -10])
def test_a_truncated_file_is_refused(length: int, folder: Path) -> None:
    whole = (folder / WHOLE).read_bytes()
    (folder / WHOLE).write_bytes(whole[:length])
    assert f"{folder / WHOLE}: found {len(whole[:length]):,} bytes" in refusal(folder)


@pytest.mark.parametrize("file", ["../secret.safetensors", "/etc/passwd", "a\\b", "", 3, ".."])
def test_an_index_names_files_of_its_folder_only(file: object, folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {"lm_head.weight": file}}))
    assert f"weight_map.lm_head.weight: found {file!r}, expected the name of" in refusal(folder)


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"weight_map": []}', "[" * 10**5])
def test_an_index_that_is_none_is_refused(text: str, folder: Path) -> None:
    (folder / INDEX).write_text(text)
    assert refusal(folder).startswith(f"{folder / INDEX}: ")


def test_a_pickle_is_never_opened(folder: Path) -> None:
    (folder / WHOLE).rename(folder / "pytorch_model.bin")
    assert f"found pytorch_model.bin, expected {WHOLE}" in refusal(folder)
    assert "save_pretrained" in refusal(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mixtrall"}, "did you mean 'mixtral'"),
        ({"model_type": "qwen3_next"}, "whose layers are not read"),
        ({"quantization_config": {"quant_method": "fp8"}}, "found 'float8', expected one of"),
        ({"num_local_experts": 5}, "found no such tensor"),
    ],
)
def test_a_config_of_another_network_is_refused(
    changes: dict[str, Any], message: str, folder: Path
) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    if changes.get("model_type") == "mixtrall":
        (folder / "config.json").write_text(json.dumps({"model_type": "mixtrall"}))
    assert message in refusal(folder)


def test_quantised_tensors_are_refused(folder: Path) -> None:
    tensors = safetensors.torch.load_file(folder / WHOLE)
    tensors[W2] = tensors[W2].to(torch.float8_e4m3fn)
    safetensors.torch.save_file(tensors, folder / WHOLE)
    assert f"{W2}: found type F8_E4M3" in refusal(folder)


def test_a_repository_is_fetched_without_its_pickles(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no network, the message says so."""
    hub = pytest.importorskip("huggingface_hub", reason="the hub's own client fetches")
    asked = []

    def fetch(repository: str, allow_patterns: list[str]) -> str:
        asked.append((repository, allow_patterns))
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", fetch)
    assert open_checkpoint("someone/tiny-mixtral").model.num_experts == 4
    ((repository, patterns),) = asked
    assert repository == "someone/tiny-mixtral"
    files = ("config.json", "model-1.safetensors", "tokenizer.model", "merges.txt", "model.bin")
    fetched = [file for file in files if any(fnmatch(file, pattern) for pattern in patterns)]
    assert fetched == list(files[:-1])

    def no_network(repository: str, allow_patterns: list[str]) -> str:
        raise OSError("Name or service not known")

    monkeypatch.setattr(hub, "snapshot_download", no_network)
    with pytest.raises(ValueError, match="no such folder, and not fetched .* without a network"):
        open_checkpoint("someone/tiny-mixtral")


@pytest.mark.parametrize("name", ["/no/such/folder", "no-such-folder", "a/b/c", "../x/y"])
def test_what_is_no_repository_is_not_looked_for(name: str) -> None:
    with pytest.raises(ValueError, match=r"no such folder$"):
        open_checkpoint(name)


def test_only_a_network_of_mixtrals_conventions_is_exported(tiny: ModelSpec) -> None:
    other = replace(tiny, gate=replace(tiny.gate, renormalise=False))
    with pytest.raises(ValueError, match=r"tiny: gate: found .* of Mixtral's family"):
        mixtral_config(other, "float32")


def test_a_file_larger_than_memory_is_read_tensor_by_tensor(tmp_path: Path) -> None:
    """A hole of 256 GiB, which takes no space on the disk, and a tensor behind it."""
    hole, path = 1 << 38, tmp_path / WHOLE
    places = {"hole": (hole // 2, 0, hole), "small": (2, hole, hole + 4)}
    header = json.dumps(
        {
            name: {"dtype": "BF16", "shape": [size], "data_offsets": offsets}
            for name, (size, *offsets) in places.items()
        }
    ).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.seek(hole, 1)
        file.write(torch.tensor([1.5, -2], dtype=torch.bfloat16).view(torch.uint8).numpy())
    assert TensorFile(path).tensor("small").tolist() == [1.5, -2]
