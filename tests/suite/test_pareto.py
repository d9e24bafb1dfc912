"""Quality against cost on a micro model: trained, evaluated, timed, reported, taken up again."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from moebench.records.manifest import MANIFEST
from moebench.records.pareto_run import PARETO_RECORDS, PARETO_TIMES, ParetoRun, load_pareto_run
from moebench.spec.learned_file import load_learned
from moebench.suite import main
from moebench.suite.pareto.plan import pareto_plan
from moebench.suite.source import suite_source

TRAININGS = """
schema = 1
kind = "training"
title = "Trainings of a micro model"
batch = 4
window = 16

[model]
name = "micro"
source = "a test"
num_layers = 2
hidden_size = 16
intermediate_size = 8
num_experts = 4
top_k = 2
vocab_size = 256
attention = { kind = "gqa", num_heads = 2, num_kv_heads = 2, head_dim = 8 }
gate = { score = "softmax", renormalise = true }
expert_weights = "float32"
other_weights = "float32"

[[run]]
recipe = "base"
tokens = 1280
seeds = [1]

[[run]]
recipe = "ada-k"
base = "base"
tokens = 1280
seeds = [1, 2]
options = { regularisation = 0.01, warm_steps = 10 }

[[run]]
recipe = "regression-k"
base = "base"
tokens = 640
seeds = [1]
"""
PARETO = """
schema = 1
kind = "pareto"
title = "Pareto of a micro model"
training = "TRAINING"
windows = 32
calibration_windows = 32
means = [1.5]
own_k = [1]
hardware = ["h100-sxm"]
predicted_batches = [1, 16]
rounds = 2

[[cell]]
phase = "decode"
batch = 2
length = 8

[[cell]]
phase = "train"
batch = 2
length = 8
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Suites and a text whose bytes follow one another by a rule, with some noise."""
    folder = tmp_path_factory.mktemp("pareto")
    (folder / "micro.toml").write_text(TRAININGS)
    (folder / "pareto.toml").write_text(PARETO.replace("TRAINING", str(folder / "micro.toml")))
    (folder / "text").mkdir()
    draw = torch.Generator().manual_seed(1)
    for number in range(500):
        steps = torch.randint(1, 4, (1000,), generator=draw)
        letters = (97 + steps.cumsum(0) % 26).tolist()
        (folder / "text" / f"{number}.txt").write_bytes(bytes(letters))
    other = torch.randint(65, 91, (600_000,), generator=draw).tolist()
    (folder / "shifted.txt").write_bytes(bytes(other))
    return folder


def command(folder: Path, *words: str) -> list[str]:
    trainings = ["--training", str(folder / "train"), "--text", str(folder / "text")]
    shifted = ["--shifted", str(folder / "shifted.txt")]
    return [
        str(folder / "pareto.toml"),
        *trainings,
        *shifted,
        "--out",
        str(folder / "results"),
        *words,
    ]


@pytest.fixture(scope="module")
def run(folder: Path) -> ParetoRun:
    assert main(command(folder)) == 0
    (directory,) = (path.parent for path in folder.glob(f"results/**/{PARETO_TIMES}"))
    return load_pareto_run(directory)


def settings(run: ParetoRun) -> list[str]:
    return [record.setting for record in run.records]


@pytest.mark.slow
def test_every_setting_of_the_plan_has_a_record(run: ParetoRun) -> None:
    assert run.manifest.status == "done" and not run.problems
    assert set(run.manifest.settings) <= set(settings(run))
    assert len(set(settings(run))) == len(settings(run))
    own = next(record for record in run.records if record.recipe == "ada-k")
    at_equal_k = [r for r in run.records if r.router == "top-p" and r.calibrated_k != 1.5]
    mean = sum(own.mean_k_by_seed) / 2
    assert [r.calibrated_k for r in at_equal_k] == [pytest.approx(mean, abs=0.005)]


@pytest.mark.slow
def test_quality_is_paired_with_the_base_and_seeds_are_counted(run: ParetoRun) -> None:
    base = run.records[0]
    assert base.is_base and base.quality.test.over_base_nats_per_byte is None
    base_loss = base.quality.test.nats_per_byte.value
    for record in run.records[1:]:
        difference = record.quality.test.over_base_nats_per_byte
        assert difference is not None
        pairs = [
            one - of_base
            for seed in record.test_window_losses
            for one, of_base in zip(seed, base.test_window_losses[0], strict=True)
        ]
        assert difference.value == pytest.approx(sum(pairs) / len(pairs), abs=2e-6)
        assert record.quality.base_tokens == 1280
        there = record.quality.shifted
        assert there is not None and there.loss.nats_per_byte.value > base_loss
    own = next(record for record in run.records if record.recipe == "ada-k")
    assert own.quality.test.spread.seeds == (1, 2)
    assert own.training is not None and own.training.tokens == 2 * 1280


@pytest.mark.slow
def test_every_setting_is_timed_beside_the_base_in_every_cell(run: ParetoRun) -> None:
    for record in run.records:
        assert [time.cell.phase for time in record.times] == ["decode", "train"]
        for time in record.times:
            assert time.latency is not None and (time.speedup is None) == record.is_base
            assert (time.joules is None) == bool(time.joules_missing)


@pytest.mark.slow
def test_flops_follow_the_experts(run: ParetoRun) -> None:
    """At k of both bases, a fixed k of top_k - 1 saves the FLOPs of one expert a layer."""
    fixed = next(record for record in run.records if record.setting == "fixed-k 1")
    base = fixed.base_flops_per_token
    assert base is not None and fixed.flops_per_token is not None
    expert = 3 * 2 * 16 * 8
    assert base - fixed.flops_per_token == pytest.approx(2 * expert, rel=0.1)


@pytest.mark.slow
def test_predictions_are_of_the_model_and_of_one_it_is_carried_to(run: ParetoRun) -> None:
    for record in run.records:
        assert {p.model for p in record.predictions} == {"micro", "mixtral-8x7b"}
        if record.router == "oea":
            assert all(p.missing and p.ratio is None for p in record.predictions)
    single = next(record for record in run.records if record.setting == "fixed-k 1")
    first = [p for p in single.predictions if p.model == "mixtral-8x7b" and p.batch == 1]
    assert first[0].ratio is not None and first[0].ratio < 0.8


@pytest.mark.slow
def test_the_learned_points_can_be_used_again(run: ParetoRun) -> None:
    own = next(record for record in run.records if record.recipe == "ada-k")
    (path,) = (run.directory / "points").glob("tiny-ada-k-*.toml")
    point = load_learned(str(path))
    assert point.router == "ada-k" and point.mean_k == pytest.approx(own.mean_k_by_seed[0], 1e-3)


@pytest.mark.slow
def test_a_run_that_was_cut_off_measures_what_is_missing(run: ParetoRun, folder: Path) -> None:
    whole = settings(run)
    for name in (PARETO_RECORDS, PARETO_TIMES):
        lines = (run.directory / name).read_bytes().splitlines(keepends=True)
        (run.directory / name).write_bytes(b"".join(lines[:-1]) + lines[-1][:40])
    assert main(["--resume", str(run.directory)]) == 0
    again = load_pareto_run(run.directory)
    assert settings(again) == whole and not again.problems
    assert all(len(record.times) == 2 for record in again.records)
    kept = {record.setting: record.test_window_losses for record in run.records}
    assert {r.setting: r.test_window_losses for r in again.records} == kept


def failure(words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(list(words)) == 2
    return capsys.readouterr().err


@pytest.mark.slow
def test_a_run_is_not_continued_with_another_text(
    run: ParetoRun, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "text" / "0.txt"
    kept = path.read_bytes()
    path.write_bytes(kept[:-1] + b"!")
    try:
        assert "text_sha256: the run has" in failure(["--resume", str(run.directory)], capsys)
    finally:
        path.write_bytes(kept)


def test_without_its_base_a_run_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*command(folder), "--no-training", "--training", str(tmp_path)]
    assert "expected" not in capsys.readouterr().err
    assert "found no finished training of the base" in failure(words, capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_what_is_not_trained_is_named_with_its_tokens(
    run: ParetoRun, folder: Path, tmp_path: Path
) -> None:
    trainings = tmp_path / "train"
    trainings.mkdir()
    for path in (folder / "train").iterdir():
        if not path.name.endswith("s2"):
            (trainings / path.name).symlink_to(path)
    words = [*command(folder), "--no-training", "--training", str(trainings)]
    assert main([*words, "--out", str(tmp_path / "results")]) == 0
    (manifest,) = tmp_path.glob(f"results/**/{MANIFEST}")
    (missing,) = load_pareto_run(manifest.parent).manifest.not_trained
    assert missing.tokens == 1280 and "regularisation" in missing.setting
    assert [name[-2:] for name in missing.missing_runs] == ["s2"]


def test_the_plan_of_the_shipped_suite_compares_every_rival_with_every_training() -> None:
    plan = pareto_plan(suite_source("pareto"), Path("nowhere"), None)
    found = {setting.router for setting in (*plan.trained, *plan.untrained({}))}
    rivals = {"random-k", "top-p", "skip", "entropy-k", "regression-k", "fixed-k", "oea"}
    assert found == {"top-k", "ada-k", "adamoe", "rmoe"} | rivals
    assert {len(setting.runs) for setting in plan.trained} == {1, 3}
    names = {setting.recipe for setting in plan.trained}
    assert {setting.twin for setting in plan.trained} - {None} <= names
