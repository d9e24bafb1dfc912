"""Tables of operations: their document, the lines of --rows, what is left out, and pairs."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
from stream import KIND, PAIRS, SHARE, START, write

from moebench.calibrate.operations import kinds
from moebench.spec.hardware import load_hardware
from moebench.validate import cli as validate

F = {"n", "mape", "median_ape", "p90_ape", "bias", "coverage90"}


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "KINDS", (KIND, PAIRS))


def document(
    capsys: pytest.CaptureFixture[str], table: Path, *options: str
) -> tuple[int, dict[str, Any]]:
    code = validate.main([str(table), "--json", *options])
    return code, json.loads(capsys.readouterr().out)


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_table_is_told_by_its_columns_and_suspect_rows_are_scored_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = document(capsys, write(tmp_path / "any.csv"))
    assert code == 1, "one row in 82 is of an unknown framework"
    assert found["kind"] == "stream" and found["n"] == 81
    assert found["overall"]["n"] == 80 and found["suspect"]["n"] == 1
    assert set(found["groups"][0]) == {"system", "framework", "version", "regimes"} | F
    assert sum(one["n"] for one in found["regimes"].values()) == 80
    assert found["skipped"] == {"column framework: found 'unknown', expected an engine": 1}


def test_a_device_that_is_left_out_is_priced_by_the_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, written = write(tmp_path / "t.csv"), tmp_path / "r.csv"
    _, shipped = document(capsys, table)
    _, found = document(capsys, table, "--leave-out", "device", "--rows", str(written))
    assert shipped["overall"]["mape"] > 20, "typical parameters are not these"
    assert found["overall"]["mape"] < 3 and found["leave_out"] == "device"
    alone = write(tmp_path / "alone.csv", ("h100_sxm",))
    assert validate.main([str(alone), "--leave-out", "device"]) == 2
    assert validate.main([str(alone), "--leave-out", "shapes"]) == 1


def test_lines_are_in_microseconds_and_in_order(tmp_path: Path) -> None:
    table, written = write(tmp_path / "t.csv"), tmp_path / "r.csv"
    text = table.read_text().splitlines()
    text[2] = text[2].replace("vllm", "unknown")
    text[3] = text[3].replace("h100_sxm", "h9000")
    text[4] += ",more"
    table.write_text("\n".join(text))
    assert validate.main([str(table), "--rows", str(written)]) == 0
    found = lines(written)
    assert [row["row"] for row in found] == [str(i) for i in range(1, 83)]
    first, unknown, no_system, ragged = found[:4]
    size = float(text[1].split(",")[3])
    exact = 1e6 * (START + size / (SHARE * load_hardware("h100").memory_bandwidth))
    assert float(first["measured"]) == pytest.approx(exact, rel=0.05)
    low, predicted, high = (float(first[name]) for name in ("low", "predicted", "high"))
    assert low < predicted < high and exact / 3 < predicted < 3 * exact
    for row, why in ((unknown, "unknown"), (no_system, "h9000"), (ragged, "cells")):
        assert row["predicted"] == row["low"] == row["high"] == "" and why in row["reason"]


def test_pairs_are_ratios_of_the_larger_over_the_smaller(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, written = tmp_path / "t.csv", tmp_path / "r.csv"
    names = list(PAIRS.columns)
    table.write_text(",".join(names) + "\nh100_sxm,vllm,1.0,6,8,6000,7800\n")
    code, found = document(capsys, table, "--rows", str(written))
    assert code == 0 and set(found["overall"]) == {"correlation"} | F
    (row,) = lines(written)
    assert float(row["measured"]) == pytest.approx(1.3)
    assert float(row["predicted"]) == pytest.approx(8 / 6, rel=0.01), "starts hardly count"
    assert float(row["low"]) < float(row["predicted"]) < float(row["high"]) < math.inf
    assert validate.main([str(table), "--leave-out", "shapes"]) == 2


def test_a_missing_column_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "t.csv"
    table.write_text("system,framework,bytes,latency_us,suspect\nh100_sxm,vllm,8,9,0\n")
    assert validate.main([str(table)]) == 2
    assert "'version'" in capsys.readouterr().err
