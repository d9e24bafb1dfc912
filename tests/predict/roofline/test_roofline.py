"""The model of a kernel: laws, one case by hand, and the committed predictions."""

import dataclasses
from pathlib import Path

import pytest

from moebench.predict.roofline.assumptions import Assumptions
from moebench.predict.roofline.compiled import CompiledTile, compiled_tiles, own_tile
from moebench.predict.roofline.document import DEVICES, MODELS, document
from moebench.predict.roofline.layer import ExpertLayer, own_layer
from moebench.predict.roofline.matmul import GroupedMatmul, matmul_time
from moebench.spec.hardware import load_hardware
from moebench.spec.model import load_model

ROOT = Path(__file__).resolve().parents[3]
TILE = CompiledTile("ours", 90, "down", 16, 64, 128, 4, 4, 2, "wgmma")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("model", MODELS)
def test_no_layer_is_faster_than_its_roofline_and_the_ends_enclose_the_middle(
    device: str, model: str
) -> None:
    for tokens in (1, 64, 4096):
        layer = ExpertLayer.of(load_model(model), tokens)
        kinds = (Assumptions.slow(), Assumptions(), Assumptions.fast())
        shares = [own_layer(layer, load_hardware(device), assumed).share for assumed in kinds]
        assert 0 < shares[0] < shares[1] < shares[2] < 1


@pytest.mark.parametrize("better", ["memory_bandwidth", "clock", "cache"])
def test_a_better_device_is_not_slower(better: str) -> None:
    device = load_hardware("h100-sxm")
    twice = dataclasses.replace(device, **{better: 2 * getattr(device, better)})
    for tokens in (1, 16, 256, 4096):
        layer = ExpertLayer.of(load_model("qwen3-30b-a3b"), tokens)
        first, second = (own_layer(layer, on, Assumptions()).seconds for on in (device, twice))
        assert second <= first


def test_one_program_moves_what_it_has_in_flight_once_a_latency() -> None:
    """Little's law by hand: three steps of 80 x 128 elements in flight, 32 steps in all."""
    matmul = GroupedMatmul(TILE, 4096, 64, row_tiles=1, experts=1, rows=1, distinct_rows=1)
    assumed = dataclasses.replace(Assumptions(), l2_latency=Assumptions.dram_latency)
    time = matmul_time(matmul, load_hardware("h100-sxm"), assumed)
    assert time.bound == "loads in flight"
    assert time.bytes_in_flight == 3 * 2 * 128 * (16 + 64)
    assert time.seconds - time.overhead == pytest.approx(32 / 3 * 0.9e-6)
    assert time.waves == pytest.approx(1 / (2 * 132))


def test_many_programs_read_weights_at_the_bandwidth() -> None:
    """Experts whose weights are read once: the bytes over what streaming reads reach."""
    device = load_hardware("h100-sxm")
    matmul = GroupedMatmul(TILE, 4096, 14336, row_tiles=66, experts=66, rows=66, distinct_rows=66)
    time = matmul_time(matmul, device, Assumptions())
    assert time.bound == "DRAM"
    weights = 66 * 2 * 4096 * 14336
    assert time.seconds == pytest.approx(weights / (0.92 * device.memory_bandwidth), rel=0.01)


def test_splitting_a_sum_helps_few_programs() -> None:
    few = GroupedMatmul(TILE, 14336, 512, row_tiles=1, experts=1, rows=1, distinct_rows=1)
    split = dataclasses.replace(few, parts=4)
    device = load_hardware("h200-sxm")
    seconds = [matmul_time(each, device, Assumptions()).seconds for each in (few, split)]
    assert seconds[1] < 0.6 * seconds[0]


def test_our_tile_has_the_rows_that_the_routing_cuts() -> None:
    rows = sorted({tile.rows for tile in compiled_tiles() if tile.maker == "ours"})
    assert own_tile(90, "down", 16).rows == 16
    assert own_tile(90, "down", 10**6).rows == rows[-1]
    with pytest.raises(ValueError, match="sm_75"):
        own_tile(75, "down", 16)


def test_the_committed_predictions_are_those_of_the_model() -> None:
    text = document()
    assert "Predicted, no GPU has run it" in text
    for entry in dataclasses.fields(Assumptions):
        assert f"| {entry.name} |" in text
        assert entry.metadata["basis"] in text
    model = ROOT / "results" / "compile" / "triton-3.7.1" / "model.md"
    assert model.read_text(encoding="utf-8") == text
