"""`validate --rows`: one line for each line of a table, in its order and its units."""

import csv
import gzip
import math
from pathlib import Path
from typing import Any

import pytest

from moebench.validate import cli as validate

EXPERTS = {
    "system": "h100_sxm", "framework": "vllm", "version": "0.24.0",
    "kernel_source": "vllm_unquantizedfusedmoe_triton_tritonexperts", "num_tokens": "64",
    "hidden_size": "4096", "inter_size": "14336", "topk": "2", "num_experts": "8",
    "moe_tp_size": "1", "moe_ep_size": "1", "distribution": "balanced", "latency_us": "1000",
}  # fmt: skip
PAIR = {k: v for k, v in EXPERTS.items() if k not in ("topk", "latency_us")} | {
    "num_experts": "256", "inter_size": "2048", "moe_dtype": "fp8_block",
    "latency_us_top8": "12", "latency_us_top6": "10",
}  # fmt: skip
MATMUL = {"system": "h100_sxm", "m": "64", "n": "4096", "k": "4096", "latency_us": "20"}
SERVING = {
    "source": "ml.energy-v3", "task": "lm-arena-chat", "model_id": "mistralai/Mixtral",
    "backbone": "mixtral-8x7b", "weight_precision": "bfloat16", "gpu": "H100", "num_gpus": "2",
    "data_parallel": "1", "mean_batch_size": "32", "mean_output_tokens_per_request": "400",
    "power_w_per_gpu": "450", "energy_j_per_output_token": "0.45",
    "output_throughput_tok_per_s": "2000",
}  # fmt: skip
KINDS = {"experts": EXPERTS, "pair": PAIR, "matmul": MATMUL, "serving": SERVING}
MEASURED = {"experts": 1000, "pair": 1.2, "matmul": 20, "serving": 0.45}
BAD = {
    "experts": ("topk", "two"),
    "pair": ("latency_us_top6", ""),
    "matmul": ("m", "-1"),
    "serving": ("mean_batch_size", "many"),
}
SYSTEM = {"serving": "gpu"}


def rows_of(tmp_path: Path, rows: list[dict[str, str]], *options: str) -> list[dict[str, str]]:
    """What --rows writes; the table is compressed and its columns are in another order."""
    names = [*reversed(rows[0]), "more"]
    lines = [",".join(names), *(",".join(row.get(n, "x") for n in names) for row in rows)]
    path, written = tmp_path / "t.csv.gz", tmp_path / "any name"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    written.write_text("what was there before")
    assert validate.main([str(path), "--rows", str(written), *options]) == 0
    with written.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def values(row: dict[str, str]) -> list[float]:
    return [float(row[name]) for name in ("low", "predicted", "high")]


@pytest.mark.parametrize("kind", KINDS)
def test_every_line_is_written_in_order_and_in_the_units_of_the_table(
    kind: str, tmp_path: Path
) -> None:
    good, (column, bad) = KINDS[kind], BAD[kind]
    unknown = {SYSTEM.get(kind, "system"): "h9000"}
    written = rows_of(tmp_path, [good | unknown, good, good | {column: bad}, good])
    assert [row["row"] for row in written] == ["1", "2", "3", "4"]
    assert list(written[0]) == ["row", "measured", "predicted", "low", "high", "reason"]
    for row in (written[1], written[3]):
        low, predicted, high = values(row)
        assert row["reason"] == "" and 0 < low < predicted < high
        assert float(row["measured"]) == pytest.approx(MEASURED[kind])
        assert 1 / 3 < predicted / MEASURED[kind] < 3, "in other units it would be far off"
    for row, why in ((written[0], "h9000"), (written[2], column)):
        assert (row["predicted"], row["low"], row["high"]) == ("", "", "")
        assert why in row["reason"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_without_one_good_line_is_written_all_the_same(kind: str, tmp_path: Path) -> None:
    column, bad = BAD[kind]
    (row,) = rows_of(tmp_path, [KINDS[kind] | {column: bad}])
    assert column in row["reason"] and row["predicted"] == ""
    (row,) = rows_of(tmp_path, [KINDS[kind] | {SYSTEM.get(kind, "system"): "h9000"}])
    assert "h9000" in row["reason"]


def test_ragged_and_blank_lines_keep_the_numbers_of_the_others(tmp_path: Path) -> None:
    path, written = tmp_path / "t.csv", tmp_path / "r.csv"
    good = ",".join(MATMUL.values())
    path.write_text("\n".join([",".join(MATMUL), good + ",5", "", good, ""]))
    assert validate.main([str(path), "--rows", str(written)]) == 0
    with written.open(encoding="utf-8") as file:
        first, blank, third = csv.DictReader(file)
    assert "6 cells" in first["reason"] and "blank" in blank["reason"]
    assert third["row"] == "3" and third["reason"] == ""


def test_power_is_written_where_the_throughput_is_given(tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path, [SERVING], "--given", "throughput")
    assert float(row["measured"]) == 450 and values(row)[1] == pytest.approx(450, rel=0.5)


@pytest.mark.parametrize("system", ["h200_sxm", "l40s", "b300_sxm", "gb300", "gb200"])
def test_shipped_hardware_without_a_row_of_its_own_is_priced(system: str, tmp_path: Path) -> None:
    (experts,) = rows_of(tmp_path, [EXPERTS | {"system": system, "version": "99"}])
    (matmul,) = rows_of(tmp_path, [MATMUL | {"system": system}])
    for row in (experts, matmul):
        low, predicted, high = values(row)
        assert row["reason"] == "" and low < predicted < high < math.inf


@pytest.mark.parametrize("dtype", ["int8", "int4_wo", "w4afp8", "w4a16_mxfp4", "nvfp4"])
def test_weights_of_no_fitted_kernel_take_the_nearest_with_a_wider_interval(
    dtype: str, tmp_path: Path
) -> None:
    def width(row: dict[str, str]) -> Any:
        return math.log(values(row)[2] / values(row)[0])

    few = EXPERTS | {"system": "b200_sxm", "num_tokens": "8", "latency_us": "400"}
    wide, narrow = rows_of(tmp_path, [few | {"moe_dtype": one} for one in ("bfloat16", dtype)])
    assert narrow["reason"] == "" and values(narrow)[1] < values(wide)[1]
    assert width(narrow) > width(wide)
