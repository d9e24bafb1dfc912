"""The verbs `validate` and `calibrate`: every row priced, every bad row named, the JSON schema."""

import csv
import gzip
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moebench.calibrate import cli as calibrate
from moebench.validate import cli as validate

LATENCY = {
    "system": "h100_sxm", "framework": "vllm", "version": "0.24.0",
    "kernel_source": "vllm_unquantizedfusedmoe_triton_tritonexperts", "num_tokens": "64",
    "hidden_size": "4096", "inter_size": "14336", "topk": "2", "num_experts": "8",
    "moe_tp_size": "1", "moe_ep_size": "1", "distribution": "balanced", "gated": "1",
    "slow_tactic": "0", "latency_us": "1000",
}  # fmt: skip
F = {"n", "mape", "median_ape", "p90_ape", "bias", "coverage90"}


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    content = text.getvalue().encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def document(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = validate.main([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def a_table(**changes: str) -> list[dict[str, str]]:
    tokens = ("1", "16", "64", "256", "1024", "4096", "16384")
    return [LATENCY | {"num_tokens": count} | changes for count in tokens]


def test_document_has_the_agreed_schema(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = a_table() + a_table(moe_ep_size="2") + a_table(slow_tactic="1")
    code, found = document(capsys, str(write(tmp_path / "t.csv.gz", rows)))
    assert code == 0
    assert found["schema"] == 1
    assert found["n"] == 21
    assert found["skipped"] == {}
    for name in ("overall", "ep1", "ep_gt1", "slow_tactic"):
        assert set(found[name]) == F
        assert found[name]["n"] in (7, 14)
    assert list(found["regimes"]) == ["1-16", "17-256", "257-4096", ">4096"]
    assert sum(figures["n"] for figures in found["regimes"].values()) == 14
    assert {group["ep"] for group in found["groups"]} == {"1", ">1"}
    assert {"system", "framework", "version", "kernel_source", "split"} <= set(found["groups"][0])


def test_unknown_kernels_and_devices_are_priced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = a_table(kernel_source="brand_new_experts", framework="novel", version="9")[:4]
    rows += (
        a_table(system="l40s")[:4] + a_table(version="0.19.0", kernel_source="vllm_fused_moe")[:4]
    )
    code, found = document(capsys, str(write(tmp_path / "t.csv", rows)))
    assert (code, found["n"]) == (0, 12)


def test_the_interval_widens_with_ignorance() -> None:
    from moebench.predict.kernels.intervals import Basis, shipped_widths

    widths = shipped_widths()
    tokens = np.array([1.0, 100.0, 1000.0, 10000.0])
    wide = {}
    bases: tuple[Basis, ...] = ("seen", "device", "stranger")
    for basis in bases:
        low, high = widths.latency_factors([basis] * 4, "triton", tokens)
        assert ((low > 0) & (low < 1) & (high > 1) & np.isfinite(high)).all()
        wide[basis] = np.log(high / low).mean()
    assert wide["seen"] < wide["device"] < wide["stranger"]


def test_bad_rows_are_named_and_hide_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = a_table()
    rows[1] = rows[1] | {"latency_us": "-3"}
    rows[2] = rows[2] | {"latency_us": ""}
    rows[3] = rows[3] | {"moe_ep_size": "3"}
    code = validate.main([str(write(tmp_path / "t.csv", rows)), "--json"])
    out, err = capsys.readouterr()
    assert code == 3
    assert json.loads(out)["n"] == 4
    assert "row 2 (line 3), column latency_us: found '-3'" in err
    assert "row 3 (line 4), column latency_us: found ''" in err
    assert "row 4 (line 5), column moe_ep_size: found '3'" in err


def test_milliseconds_among_microseconds_are_noticed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = a_table()
    rows[5] = rows[5] | {"latency_us": "1.9"}
    code, found = document(capsys, str(write(tmp_path / "t.csv", rows)))
    assert code == 1
    assert found["skipped"] == {"column latency_us: not in microseconds": 1}


@pytest.mark.parametrize("factor", [1e-6, 1e-3, 1e3])
def test_rows_in_another_unit_are_named_and_not_scored(
    factor: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = a_table()
    for index in (2, 3, 5):
        rows[index] = rows[index] | {"latency_us": str(1500 * factor)}
    assert validate.main([str(write(tmp_path / "t.csv", rows)), "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["n"] == 4
    assert "rows 3-4, 6, column latency_us: not in microseconds; not priced" in err


def test_weights_without_a_rate_on_the_device_are_widened_and_others_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        row | {"moe_dtype": "bfloat16"} for row in a_table(system="a100_sxm", latency_us="4000")
    ]
    rows[1] = rows[1] | {"moe_dtype": "fp8"}
    rows[2] = rows[2] | {"moe_dtype": "fp7"}
    assert validate.main([str(write(tmp_path / "t.csv", rows)), "--json"]) == 3
    out, err = capsys.readouterr()
    assert json.loads(out)["n"] == 6
    assert "row 3 (line 4), column moe_dtype: found 'fp7'" in err


def test_ragged_rows_blank_lines_and_byte_marks_do_not_shift_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "t.csv", a_table())
    lines = path.read_text().splitlines()
    lines[2] += ",5"
    lines[3] = lines[3][:20]
    lines.insert(5, "")
    path.write_text("\ufeff" + "\n".join(lines) + "\n", encoding="utf-8")
    assert validate.main([str(path), "--json"]) == 3
    out, err = capsys.readouterr()
    assert json.loads(out)["n"] == 5
    assert "row 2 (line 3), column (all): found '16 cells', expected a row of 15 cells" in err
    assert "row 3 (line 4)" in err and "row 5" not in err


def test_a_table_that_is_cut_off_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "t.csv.gz", a_table())
    path.write_bytes(path.read_bytes()[:-20])
    assert validate.main([str(path)]) == 2
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("column", ["latency_us", "topk", "system"])
def test_a_missing_column_is_named(
    column: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{k: v for k, v in row.items() if k != column} for row in a_table()]
    assert validate.main([str(write(tmp_path / "t.csv", rows))]) == 2
    assert f"missing column '{column}'" in capsys.readouterr().err


def test_nothing_to_price_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert validate.main([str(write(tmp_path / "t.csv", a_table(system="h1000")))]) == 2
    assert "unknown hardware 'h1000'" in capsys.readouterr().err
    assert validate.main([str(tmp_path / "none.csv")]) == 2
    assert validate.main([str(write(tmp_path / "t.csv", a_table())), "--calibration", "row:4"]) == 2


def test_rows_for_calibration_are_not_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = a_table() + a_table(hidden_size="2048") + a_table(inter_size="1024")
    code, found = document(capsys, str(write(tmp_path / "t.csv", rows)), "--calibration", "rows:8")
    assert (code, found["n"], found["calibration"]) == (0, 13, "rows:8")


def test_pairs_are_scored_by_their_ratio(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {k: v for k, v in row.items() if k not in ("topk", "latency_us", "gated", "slow_tactic")}
        | {"moe_dtype": "fp8_block", "num_experts": "256", "inter_size": "2048"}
        | {"latency_us_top8": "120", "latency_us_top6": "100"}
        for row in a_table()
    ]
    code, found = document(capsys, str(write(tmp_path / "t.csv", rows)))
    assert code == 0
    assert set(found["overall"]) == F | {"correlation"}
    assert found["flops"]["mape"] == pytest.approx(100 * (8 / 6 / 1.2 - 1), abs=0.01)
    assert found["no_change"]["mape"] == pytest.approx(100 * (1 - 1 / 1.2), abs=0.01)


def test_dense_matmuls_are_scored_and_carry_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"system": "l40s", "m": str(m), "n": "4096", "k": "4096", "latency_us": str(latency)}
        for m, latency in ((1, 45), (64, 50), (1024, 150), (8192, 1100))
    ]
    gemm = str(write(tmp_path / "gemm.csv", rows))
    code, found = document(capsys, gemm)
    assert (code, found["n"]) == (0, 4)
    table = str(write(tmp_path / "t.csv", a_table(system="l40s")))
    without = document(capsys, table)[1]["overall"]
    assert document(capsys, table, "--gemm", gemm)[1]["overall"] != without


def test_no_torch_is_imported() -> None:
    code = "import sys, moebench.validate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_calibrating_writes_what_can_be_read(tmp_path: Path) -> None:
    from moebench.predict.kernels.catalogue import read_fits

    rng = np.random.default_rng(0)
    rows = [
        LATENCY | {"num_tokens": str(tokens), "moe_tp_size": str(tp),
                   "latency_us": f"{1200 / tp * rng.uniform(0.9, 1.1):.2f}"}
        for tp in (1, 2, 4) for tokens in range(40, 80)
    ]  # fmt: skip
    table = write(tmp_path / "t.csv", rows)
    assert calibrate.main(["--from", str(table), "--out", str(tmp_path / "out")]) == 0
    (path,) = (tmp_path / "out").iterdir()
    (fit,) = read_fits(path.read_text(), path.name)
    assert (fit.system, fit.rows, fit.kernel.family) == ("h100-sxm", 120, "triton")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_shipped_file_is_what_the_command_makes(reference: Path, tmp_path: Path) -> None:
    from moebench.predict.kernels.catalogue import read_fits, shipped_fits

    table = reference / "gpu_moe_latency_dev.csv.gz"
    assert calibrate.main(["--from", str(table), "--out", str(tmp_path)]) == 0
    again = [fit for path in tmp_path.iterdir() for fit in read_fits(path.read_text(), path.name)]
    assert len(again) == 15
    for fit in again:
        shipped = next(
            one for one in shipped_fits() if (one.kernel, one.system) == (fit.kernel, fit.system)
        )
        assert shipped.table_sha256 == fit.table_sha256
        assert shipped.error.mape == pytest.approx(fit.error.mape, abs=0.05)
        for name, value in vars(shipped.parameters).items():
            assert vars(fit.parameters)[name] == pytest.approx(value, rel=0.02), name
