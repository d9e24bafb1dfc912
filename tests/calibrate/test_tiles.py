"""The sweep over tiles, on an imitated device whose best tiles are known."""

import dataclasses
import importlib.metadata
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from moebench.calibrate.tile_search import (
    Search,
    TileRefused,
    Timer,
    neighbours,
    refusals,
)
from moebench.calibrate.tile_timer import is_refusal
from moebench.calibrate.tiles import MEANS, Site, layers_of, main, seeds, site_of, sweep
from moebench.doctor.imitation.imitate import imitated_gpu
from moebench.doctor.imitation.nvml import has_compiler
from moebench.experts.gpu.fingerprint import _fingerprint
from moebench.experts.gpu.tiles import KernelTile, KernelTiles, choose_tiles
from moebench.experts.gpu.tuned import (
    UNTIMED,
    Candidate,
    LayerSizes,
    chosen_tiles,
    forced,
    table_path,
    tuned_table,
)
from moebench.spec.model import ModelSpec, load_model
from moebench.spec.tile_rows import rows_of_tile

SITE = Site("NVIDIA H200", "imitated", 90)
MIXTRAL = load_model("mixtral-8x7b")
BEST = Candidate(
    KernelTiles(KernelTile(16, 64, 128, 4, 5, True), KernelTile(16, 128, 256, 4, 4, True)), 3
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tuned_table.cache_clear()
    chosen_tiles.cache_clear()
    yield
    tuned_table.cache_clear()
    chosen_tiles.cache_clear()


class Device:
    """An imitated GPU: a smooth time with one optimum; each timing takes a second of its clock."""

    def __init__(self) -> None:
        self.seconds, self.timed = 0.0, 0

    def now(self) -> float:
        return self.seconds

    def timer(self, candidate: Candidate) -> float:
        """The time grows with every factor of two from the best tiles."""
        self.seconds += 1.0
        self.timed += 1
        distance = abs(candidate.programs - BEST.programs)
        for name in ("up", "down"):
            tile, best = getattr(candidate.tiles, name), getattr(BEST.tiles, name)
            distance += abs(tile.stages - best.stages)
            for size in ("columns", "depth_bytes", "warps"):
                distance += abs(math.log2(getattr(tile, size) / getattr(best, size)))
        return 1e-4 * 1.1**distance

    def timer_of(self, sizes: LayerSizes, tokens: Sequence[int]) -> Timer:
        return self.timer


def untuned() -> Candidate:
    return Candidate(choose_tiles(90, 16, 2))


def test_the_search_finds_the_best_tiles_of_an_imitated_device() -> None:
    device = Device()
    best, is_complete = Search(90, 2, device.timer, lambda: False).run(untuned(), [])
    assert (best, is_complete) == (BEST, True)
    assert device.timed < 120


def test_a_search_without_time_still_has_the_untuned_tiles() -> None:
    device = Device()
    search = Search(90, 2, device.timer, lambda: True)
    assert search.run(untuned(), seeds(LayerSizes(8, 4096, 14336, 16), (1,), SITE)) == (
        untuned(),
        False,
    )
    assert device.timed == 1


def test_noise_does_not_change_tiles() -> None:
    """Half a percent is no gain."""
    times = iter([1.0, *[0.995] * 1000])
    search = Search(90, 2, lambda _: next(times), lambda: False)
    assert search.run(untuned(), []) == (untuned(), True)


def test_what_the_device_refuses_is_counted_and_never_chosen() -> None:
    device = Device()

    def timer(candidate: Candidate) -> float:
        if candidate.tiles.down.columns == 128:
            raise TileRefused("out of resource: shared memory")
        return device.timer(candidate)

    search = Search(90, 2, timer, lambda: False)
    best, _ = search.run(untuned(), [])
    assert best.tiles.down.columns != 128
    assert None in search.known.values()


def test_tiles_that_cannot_fit_are_not_compiled() -> None:
    """240 KiB on a device whose blocks have 227 (what the compiler found of this tile)."""
    huge = KernelTile(128, 256, 128, 8, 3)
    tiles = KernelTiles(huge, dataclasses.replace(huge, columns=128))
    assert any("up" in each for each in refusals(90, tiles, 2))
    device = Device()
    search = Search(90, 2, device.timer, lambda: False)
    best, _ = search.run(Candidate(tiles), [])
    assert search.known[Candidate(tiles)] is None
    assert best != Candidate(tiles)
    assert device.timed == sum(seconds is not None for seconds in search.known.values())


@pytest.mark.parametrize("capability", [80, 89, 90, 100, 120])
def test_no_tile_that_is_used_is_refused(capability: int) -> None:
    for rows in MEANS:
        assert not list(refusals(capability, choose_tiles(capability, rows, 2), 2))


def test_neighbours_differ_in_one_number_and_keep_the_rows() -> None:
    found = list(neighbours(BEST))
    assert len(set(found)) == len(found)
    for each in found:
        assert (each.tiles.up.rows, each.tiles.down.rows) == (16, 16)
        changed = [
            field.name
            for name in ("up", "down")
            for field in dataclasses.fields(KernelTile)
            if getattr(getattr(each.tiles, name), field.name)
            != getattr(getattr(BEST.tiles, name), field.name)
        ]
        assert len(changed) + (each.programs != BEST.programs) == 1


def test_batches_have_the_rows_that_the_routing_cuts() -> None:
    for model in (MIXTRAL, load_model("qwen3-30b-a3b"), load_model("deepseek-v3")):
        layers = list(layers_of(model))
        assert [sizes.rows for sizes, _ in layers] == list(MEANS)
        for sizes, tokens in layers:
            for number in tokens:
                assert rows_of_tile(number * model.top_k / model.num_experts) == sizes.rows


def test_seeds_are_vllms_tiles_of_the_device() -> None:
    """VLLM's table of H200 (8 experts of 14336) has 128 x 256 x 64, 8 warps, 4 stages at 1024."""
    (first, *_) = seeds(LayerSizes(8, 4096, 14336, 128), (1024,), SITE)
    assert first.tiles.down == KernelTile(128, 256, 128, 8, 4)
    assert first.tiles.up == KernelTile(128, 128, 128, 8, 4)


def test_a_sweep_keeps_its_time_limit_and_goes_on_later() -> None:
    device = Device()
    first = sweep(MIXTRAL, SITE, device.timer_of, 20.0, device.now)
    assert device.seconds <= 20 + len(MEANS)
    assert not all(each.is_complete for each in first.layers)
    second = sweep(MIXTRAL, SITE, device.timer_of, 2000.0, device.now)
    assert all(each.is_complete for each in second.layers)
    for each in second.layers:
        before = first.of(each.sizes)
        assert before is None or each.seconds <= before.seconds
        assert each.untuned_seconds is not None and each.seconds <= each.untuned_seconds
    timed = device.timed
    assert sweep(MIXTRAL, SITE, device.timer_of, 2000.0, device.now) == second
    assert device.timed == timed, "what is complete is not timed again"


def test_a_layer_runs_what_the_sweep_kept_and_says_so() -> None:
    sizes = LayerSizes(8, 4096, 14336, 16)
    assert chosen_tiles("imitated", 90, sizes).origin == UNTIMED
    device = Device()
    sweep(MIXTRAL, SITE, device.timer_of, 2000.0, device.now)
    found = chosen_tiles("imitated", 90, sizes)
    assert (found.tiles, found.programs) == (BEST.tiles, BEST.programs)
    assert found.origin.startswith("timed here, 20")
    assert chosen_tiles("another", 90, sizes).origin == UNTIMED
    assert chosen_tiles("imitated", 90, LayerSizes(8, 4096, 14336, 16, 4)).origin == UNTIMED
    with forced(sizes, untuned()):
        assert chosen_tiles("imitated", 90, sizes).tiles == untuned().tiles
    assert chosen_tiles("imitated", 90, sizes) == found


def test_a_spoilt_file_is_as_none() -> None:
    table_path("imitated").parent.mkdir(parents=True)
    table_path("imitated").write_text("{", encoding="utf-8")
    assert tuned_table("imitated") is None


def test_triton_refusals_are_known_by_their_names() -> None:
    kind = type("OutOfResources", (Exception,), {})
    assert is_refusal(kind("shared memory"))
    assert is_refusal(RuntimeError("PassManager::run failed"))
    assert not is_refusal(RuntimeError("illegal access"))


@pytest.mark.skipif(not has_compiler(), reason="no gcc for the simulated NVML library")
def test_a_sweep_runs_on_an_imitated_gpu(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tiny: ModelSpec,
) -> None:
    """Graphs, rings of routings and copies of weights; its time is made up, and no tile is real."""
    version = importlib.metadata.version
    monkeypatch.setattr(
        "importlib.metadata.version", lambda name: "3.7.1" if name == "triton" else version(name)
    )
    monkeypatch.setattr("moebench.calibrate.tiles.load_model", lambda name: tiny)
    monkeypatch.setattr("moebench.calibrate.tile_timer.COLD", 1e-4)
    monkeypatch.setattr("moebench.calibrate.tile_timer.RING", 2)
    monkeypatch.setattr("moebench.calibrate.tiles.MEANS", {16: (0.0, 4.0)})
    _fingerprint.cache_clear()
    try:
        with imitated_gpu(tmp_path):
            assert main(["--device", "cuda:0", "--time-limit", "0.3 s"]) == 0
            (path,) = (tmp_path / "cache" / "moebench").glob("*-tiles.json")
            table = tuned_table(path.name.removesuffix("-tiles.json"))
    finally:
        _fingerprint.cache_clear()
    assert table is not None and table.device == "NVIDIA H200"
    assert {each.sizes.rows for each in table.layers} <= set(MEANS)
    assert all(each.seconds > 0 and each.timed > 0 for each in table.layers)
    assert str(path) in capsys.readouterr().out


def test_there_must_be_a_gpu() -> None:
    import torch

    with pytest.raises(ValueError, match="NVIDIA"):
        site_of(torch.device("cpu"))
