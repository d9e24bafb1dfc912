"""The fit of trainers: it moves to the parameters that made the points."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from published_rows import ROW, table

from moebench.calibrate.published.tables import read_published
from moebench.calibrate.published.training import (
    LABELS,
    Trained,
    bounds_of,
    calibrate_trainers,
    fit_trainer,
    left_out_parameters,
    left_out_training,
    log_error,
    trained_points,
)
from moebench.predict.serving.trainer import FILE, TrainerFile, TrainerParameters
from moebench.spec.schema import from_mapping, read_toml

STEP = {
    "metric": "train_tokens_per_gpu",
    "tp": "1",
    "ep": "8",
    "num_gpus": "8",
    "input_len": "2048",
}
STEP |= {"dtype": "bf16", "framework": "Megatron-LM"}
EXPERTS = {"metric": "moe_kernel_time", "unit": "us", "num_gpus": "1", "tp": "1", "dtype": "bf16"}
EXPERTS |= {
    "framework": "VeOmni Triton group gemm",
    "batch_or_concurrency": "32768",
    "model": "qwen3-30b-a3b",
}
ROWS = [
    ROW | STEP | {"batch_or_concurrency": "8"},
    ROW | STEP | {"batch_or_concurrency": "64", "hardware": "b200-sxm"},
    ROW | EXPERTS,
]
TYPICAL = TrainerParameters()


def as_with(path: Path, parameters: TrainerParameters) -> list[Trained]:
    """Points as a trainer with these parameters would have published them."""
    rows = []
    for row, one in zip(
        ROWS, trained_points(read_published(table(path, ROWS)).points), strict=True
    ):
        longer = one.predicted(parameters) / one.measured
        is_time = row["metric"] == "moe_kernel_time"
        rows.append(row | {"value": str(3000 * (longer if is_time else 1 / longer))})
    return trained_points(read_published(table(path, rows)).points)


def test_a_fit_moves_to_the_parameters_that_made_the_points(tmp_path: Path) -> None:
    made = replace(TYPICAL, kernels=1.3, block=1.6e-7)
    trained = as_with(tmp_path / "t.csv", made)
    fit = fit_trainer(trained)
    assert TYPICAL.kernels < fit.kernels < made.kernels
    assert TYPICAL.block < fit.block < made.block
    for one in trained:
        assert abs(log_error(fit, one)) < 0.8 * abs(log_error(TYPICAL, one))


def test_points_that_the_prior_knows_change_nothing(tmp_path: Path) -> None:
    fit = fit_trainer(as_with(tmp_path / "t.csv", TYPICAL))
    assert fit.kernels == pytest.approx(TYPICAL.kernels, rel=1e-3)
    assert fit_trainer([]).launch == pytest.approx(TYPICAL.launch)


def test_widths_are_those_of_left_out_steps(tmp_path: Path) -> None:
    trained = as_with(tmp_path / "t.csv", replace(TYPICAL, kernels=1.3))
    low, high = bounds_of(trained, [left_out_parameters(trained, LABELS[1])])
    # Both steps are of one model, so that without it the prior is left of what they have.
    errors = [log_error(TYPICAL, one) for one in trained[:2]]
    rms = math.sqrt(sum(error**2 for error in errors) / 2)
    assert -low == high == pytest.approx(2.92 * rms, rel=1e-3)
    ratios = left_out_training([one.point for one in trained], LABELS[1])
    assert [*ratios.values()][:2] == pytest.approx([math.exp(error) for error in errors], rel=1e-3)


def test_a_file_is_written_and_read(tmp_path: Path) -> None:
    found = read_published(table(tmp_path / "t.csv", ROWS))
    calibrate_trainers([found], tmp_path)
    written = from_mapping(TrainerFile, read_toml(tmp_path / FILE.name), "training.toml")
    assert written.points == 3 and written.source.startswith("t.csv ")
    fit = fit_trainer(trained_points(found.points))
    assert written.parameters.kernels == pytest.approx(fit.kernels, rel=1e-3)
