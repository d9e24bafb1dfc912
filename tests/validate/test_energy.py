"""The verb `validate` on tables of serving power and energy: scores, and messages on bad rows."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from moebench.validate import cli as validate

FACTS = {
    "backbone": "mixtral-8x7b", "moe_layers": "32", "dense_layers": "0", "hidden_size": "4096",
    "experts": "8", "experts_per_token": "2", "expert_ff": "14336", "shared_expert_ff": "0",
    "dense_ff": "0", "attention_heads": "32", "kv_heads": "8", "head_dim": "128",
    "vocab": "32000", "params_total_b_computed": "46.70", "params_active_b_computed": "12.75",
    "kv_elements_per_token": "65536",
}  # fmt: skip
ROW = {
    "source": "ml.energy-v3", "task": "lm-arena-chat", "model_id": "mistralai/Mixtral",
    "backbone": "mixtral-8x7b", "weight_precision": "bfloat16", "gpu": "H100", "num_gpus": "2",
    "data_parallel": "1", "mean_batch_size": "32", "mean_output_tokens_per_request": "400",
    "power_w_per_gpu": "450", "energy_j_per_output_token": "0.45",
    "output_throughput_tok_per_s": "2000",
}  # fmt: skip
F = {"n", "mape", "median_ape", "p90_ape", "bias", "coverage90"}


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(text.getvalue())
    return path


def score(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, rows: list[dict[str, str]], *extra: str
) -> tuple[int, Any, str]:
    table, models = write(tmp_path / "e.csv", rows), write(tmp_path / "m.csv", [FACTS])
    code = validate.main([str(table), "--models", str(models), "--json", *extra])
    printed = capsys.readouterr()
    return code, json.loads(printed.out) if printed.out else None, printed.err


@pytest.mark.parametrize("given_", ["throughput", "none"])
def test_validate_scores_power_and_energy(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, given_: str
) -> None:
    rows = [ROW, ROW | {"gpu": "B200"}, ROW | {"gpu": "A100-40GB"}]
    code, found, _ = score(capsys, tmp_path, rows, "--given", given_)
    assert code == 0 and found["n"] == 3 and found["given"] == given_
    for scores in (found, *found["baselines"].values()):
        for quantity in ("power", "energy_per_token"):
            assert set(scores[quantity]["overall"]) == F
            assert set(scores[quantity]["gpus"]) == {"H100", "B200", "A100-40GB"}
            assert set(scores[quantity]["backbones"]) == {"mixtral-8x7b"}
    tdp = found["baselines"]["tdp"]["power"]["gpus"]["H100"]
    assert tdp["bias"] == pytest.approx(100 * (700 / 450 - 1), abs=1e-3)


def test_given_the_throughput_energy_errs_exactly_as_power(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _, found, _ = score(capsys, tmp_path, [ROW], "--given", "throughput")
    power_error = found["power"]["overall"]["bias"]
    assert found["energy_per_token"]["overall"]["bias"] == pytest.approx(power_error, abs=1e-3)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("power_w_per_gpu", "-1"),
        ("mean_batch_size", ""),
        ("energy_j_per_output_token", "450"),
        ("energy_j_per_output_token", "0.00045"),
        ("weight_precision", "int3"),
        ("backbone", "mixtral-8x7"),
        ("gpu", "H1000"),
    ],
)
def test_a_bad_row_is_named_and_hides_no_other(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, column: str, value: str
) -> None:
    code, found, error = score(capsys, tmp_path, [ROW, ROW | {column: value}, ROW])
    is_readable = column in ("weight_precision", "backbone", "gpu")
    assert code == (1 if is_readable else 3), "a third of the readable rows without a price fails"
    assert found["n"] == 2
    assert "row 2" in error and f"column {column}" in error and value in error


def test_a_gpu_of_an_unmeasured_maker_is_named_and_hides_no_other(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    lines = tmp_path / "lines.csv"
    rows = [ROW, ROW | {"gpu": "mi325x"}, ROW | {"gpu": "H200"}]
    code, found, error = score(capsys, tmp_path, rows, "--rows", str(lines))
    assert code == 0 and found["n"] == 2
    assert "row 2" in error and "no energy was ever measured on a GPU of AMD" in error
    first, second, third = csv.DictReader(io.StringIO(lines.read_text()))
    assert second["predicted"] == "" and "AMD" in second["reason"]
    for one in (first, third):
        low, middle, high = (float(one[name]) for name in ("low", "predicted", "high"))
        assert low < middle < high and one["reason"] == ""
    assert score(capsys, tmp_path, rows[1:2])[0] == 2


def test_more_ranks_of_experts_than_gpus_are_a_bad_row(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = [ROW | {"expert_parallel": ranks} for ranks in ("1", "2", "4")]
    code, found, error = score(capsys, tmp_path, rows)
    assert code == 3 and found["n"] == 2
    assert "column expert_parallel: found '4', expected at most num_gpus = 2" in error


def test_facts_of_shipped_models_are_those_of_a_table_of_models(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _, own, _ = score(capsys, tmp_path, [ROW])
    assert validate.main([str(write(tmp_path / "e.csv", [ROW])), "--json"]) == 0
    shipped = json.loads(capsys.readouterr().out)
    for quantity in ("power", "energy_per_token"):
        bias = own[quantity]["overall"]["bias"]
        assert shipped[quantity]["overall"]["bias"] == pytest.approx(bias, abs=0.1)
    row = ROW | {"backbone": "not shipped"}
    assert validate.main([str(write(tmp_path / "e.csv", [row]))]) == 2


def test_unknown_gpus_alone_are_bad_input(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, found, _ = score(capsys, tmp_path, [ROW | {"gpu": "H1000"}])
    assert code == 2 and found is None


def test_a_missing_column_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    row = {name: value for name, value in ROW.items() if name != "num_gpus"}
    code, _, error = score(capsys, tmp_path, [row])
    assert code == 2 and "'num_gpus'" in error
