"""A trained base as a checkpoint in the Hugging Face layout."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from trainings import base_manifest

from moebench.experts.backends import load_backend
from moebench.model.checkpoint.files import open_checkpoint
from moebench.model.checkpoint.layers import base_gates, load_decoder
from moebench.model.decoder import StepMode
from moebench.routers.policy import policy
from moebench.routers.routing import build_routers
from moebench.spec.model import ModelSpec
from moebench.train.base import Network, build_network, load_network
from moebench.train.export import export_base
from moebench.train.run import Trained


@pytest.fixture
def base(tiny: ModelSpec) -> Trained:
    """A base with random weights, larger than those that a training starts with."""
    network = build_network(tiny, "top-k", {}, 1)
    for parameter in network.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return Trained(Path("made-for-tests"), base_manifest(tiny), dict(network.named_weights()), "0")


@pytest.fixture
def network(base: Trained) -> Network:
    return load_network(base)


def test_layers_of_the_checkpoint_compute_what_the_base_does(
    base: Trained, network: Network, tmp_path: Path
) -> None:
    """The second layer alone, with the base's own router, to the bit; and what was counted."""
    number = export_base(base, tmp_path / "out")
    assert number == sum(p.numel() for p in network.parameters())
    checkpoint = open_checkpoint(str(tmp_path / "out"))
    routers = build_routers(policy("top-k"), checkpoint.model, 1, torch.float32)
    routers[0].eval().start_from_base(*base_gates(checkpoint, (1,))[0])
    x, experts, mode = torch.randn(2, 9, 32), load_backend("grouped"), StepMode("decoder")
    with torch.no_grad():
        found = load_decoder(checkpoint, (1,), torch.float32)(x, routers, experts, mode)[0]
        own = network.language_model.decoder
        own.layers = torch.nn.ModuleList([own.layer(1)])
        assert torch.equal(found, own(x, network.stack[1:], experts, mode)[0])


def test_a_router_that_no_checkpoint_has_is_refused(base: Trained, tmp_path: Path) -> None:
    other = replace(base, manifest=replace(base.manifest, router="rmoe"))
    with pytest.raises(ValueError, match="router: found 'rmoe', expected 'top-k'"):
        export_base(other, tmp_path / "out")


def test_nothing_is_overwritten(base: Trained, tmp_path: Path) -> None:
    export_base(base, tmp_path / "out")
    with pytest.raises(ValueError, match=r"out: found something there, expected a new folder"):
        export_base(base, tmp_path / "out")


@pytest.mark.slow
def test_transformers_loads_it_with_the_same_logits(
    base: Trained, network: Network, tmp_path: Path
) -> None:
    """MixtralForCausalLM, in fp32, within 1e-4."""
    transformers = pytest.importorskip("transformers", reason="it is transformers that loads")
    export_base(base, tmp_path / "out")
    theirs = transformers.MixtralForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokens = torch.randint(base.manifest.model.vocab_size, (2, 65))
    with torch.no_grad():
        expected = theirs(tokens).logits
        found, _ = network.language_model(tokens, network.stack, network.experts)
    assert float(expected.abs().max()) > 1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_other_programs_read_its_bytes_as_it_does(base: Trained, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="it reads tokenisers")
    tokens = pytest.importorskip("moebench.model.huggingface.tokens")
    export_base(base, tmp_path / "out")
    tokeniser = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "".join(map(chr, range(256))) + "déjà vu\n\t🙂  twice"
    ids = tokeniser(text)["input_ids"]
    assert ids == list(text.encode()) and tokeniser.decode(ids) == text
    assert tokeniser.convert_tokens_to_ids(tokeniser.eos_token) == ord("\n")
    plain = b"def f(x):\n    return x\n"
    found = tokens.tokeniser_of(tmp_path / "out", 256)(plain)
    expected = tokens.bytes_as_tokens(plain)
    for name in ("ids", "starts", "ends"):
        assert (getattr(found, name) == getattr(expected, name)).all(), name
