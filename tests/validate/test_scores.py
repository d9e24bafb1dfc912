"""Scores by hand, what is left out stays out, intervals of the unseen, figures, closed pipes."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moebench.calibrate import folds
from moebench.calibrate.rows import groups_of
from moebench.calibrate.tables import read_table
from moebench.calibrate.widths import Residuals, batch_ratios, unseen_bounds
from moebench.predict.kernels.intervals import RATIO_STEP
from moebench.validate import cli as validate
from moebench.validate.latencies import Known, left_out_scores
from moebench.validate.scores import Scores, mean_over_groups

ROW = {
    "framework": "vllm", "version": "0.24.0", "num_experts": "64", "moe_tp_size": "1",
    "kernel_source": "vllm_unquantizedfusedmoe_triton_tritonexperts", "hidden_size": "2048",
    "topk": "8", "moe_ep_size": "1", "distribution": "balanced",
}  # fmt: skip
OWN = ("system", "inter_size", "num_tokens", "latency_us")
INNER = (512, 768, 1024, 1536)


def a_table(path: Path, **slower: float) -> Path:
    """Two devices, four shapes; `slower` multiplies the latencies of a system or a width."""
    rows = []
    for system, speed in (("a100_sxm", 1.0), ("h100_sxm", 1.7)):
        for inner in INNER:
            for tokens in range(1, 28):
                factor = slower.get(system, 1.0) * slower.get(f"inner{inner}", 1.0)
                latency = factor * (30 + 0.4 * inner + 0.01 * inner * tokens**0.5) / speed
                own = (system, str(inner), str(tokens), f"{latency:.3f}")
                rows.append(ROW | dict(zip(OWN, own, strict=True)))
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(text.getvalue())
    return path


def predicted(path: Path, what: Any, keep: str) -> np.ndarray[Any, Any]:
    table = read_table(path)
    scores, _ = left_out_scores(table, what, Known())
    if keep.startswith("inner"):
        here = table.numbers["inter_size"] == float(keep.removeprefix("inner"))
    else:
        here = np.array(table.columns["system"]) == keep
    assert np.isfinite(scores.predicted).all()
    return np.stack([scores.predicted[here], scores.low[here], scores.high[here]])


@pytest.mark.slow
@pytest.mark.parametrize(("what", "keep"), [("device", "h100_sxm"), ("shapes", "inner768")])
def test_measurements_of_what_is_left_out_change_nothing(
    what: str, keep: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folds, "FOLDS", 2)
    before = predicted(a_table(tmp_path / "a.csv"), what, keep)
    after = predicted(a_table(tmp_path / "b.csv", **{keep: 3.0}), what, keep)
    other = "a100_sxm" if what == "device" else "inner512"
    moved = predicted(a_table(tmp_path / "c.csv", **{other: 3.0}), what, keep)
    # Widths come from errors on the other shapes, whose fits have seen this one.
    same = slice(None) if what == "device" else 0
    assert after[same] == pytest.approx(before[same], rel=1e-6)
    assert np.abs(np.log(moved[0] / before[0])).max() > 0.05


def test_bounds_of_the_unseen_are_as_wide_as_the_worst_device_needs() -> None:
    tokens = np.full(1000, 8.0)
    errors = np.random.default_rng(0).uniform(-1, 1, 1000)
    good = Residuals("device", "triton", "a", tokens, 0.1 * errors)
    bad = Residuals("device", "triton", "b", tokens, 0.2 + 0.1 * errors)
    bounds = unseen_bounds([good, bad])
    low, high = bounds["device"]["1-16"]
    assert (low, high) == pytest.approx((-0.28, 0.28), abs=0.01)
    assert bounds["stranger"]["1-16"] == bounds["device"]["1-16"], "knowing less is not narrower"


def test_errors_that_batches_have_in_common_leave_their_ratio(tmp_path: Path) -> None:
    """One batch in two errs by 10 %: loads that differ by 8 : 6 err by the root of their share."""
    rows = groups_of(read_table(a_table(tmp_path / "a.csv")))[0][0]
    power = np.log2(rows.cases.num_tokens)
    rows = rows[power == power.round()]
    common = Residuals.of("seen", rows, np.full(len(rows), 0.3))
    odd = Residuals.of("seen", rows, 0.1 * (np.log2(rows.cases.num_tokens) % 2))
    alone, parallel = batch_ratios(common, rows)
    assert not alone.log_error.any() and not len(parallel.log_error)
    expected = 0.1 * np.sqrt(RATIO_STEP / np.log(2))
    assert np.abs(batch_ratios(odd, rows)[0].log_error) == pytest.approx(expected)


def test_scores_are_those_of_arithmetic() -> None:
    measured = np.array([1.0, 2.0, 4.0, 8.0])
    predicted = np.array([1.1, 1.8, 4.0, 8.0])
    low, high = 0.95 * predicted, 1.05 * predicted
    scores = Scores(predicted, measured, low, high, np.array([1.0, 16, 17, 5000]))
    figures = scores.figures()
    assert figures["mape"] == pytest.approx(5.0)
    assert figures["bias"] == pytest.approx(0.0)
    assert figures["coverage90"] == pytest.approx(50.0)
    assert {name: f["n"] for name, f in scores.by_regime().items()} == {
        "1-16": 2, "17-256": 1, "257-4096": 0, ">4096": 1,
    }  # fmt: skip
    groups = [scores[np.array([0, 1])].figures(), scores[np.array([2])].figures()]
    assert mean_over_groups(groups)["mape"] == pytest.approx(5.0)
    assert mean_over_groups(groups)["n"] == 3


def test_dense_matmuls_without_shipped_parameters_have_no_interval_and_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "gemm.csv"
    path.write_text("system,m,n,k,latency_us\nh100_sxm,64,4096,4096,20\nh100_sxm,1,4096,4096,14\n")
    for known, inside in (("shipped", 50.0), ("none", None)):
        assert validate.main([str(path), "--json", "--calibration", known]) == 0
        assert json.loads(capsys.readouterr().out)["overall"]["coverage90"] == inside


def test_a_figure_of_each_device_is_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = a_table(tmp_path / "t.csv")
    assert validate.main([str(table), "--plot", str(tmp_path / "figures")]) == 0
    files = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert files == ["a100_sxm.png", "h100_sxm.png"]
    assert all((tmp_path / "figures" / name).read_bytes()[1:4] == b"PNG" for name in files)


def test_pairs_have_no_shapes_to_leave_out(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    columns = {k: v for k, v in ROW.items() if k != "topk"} | {
        "system": "h100_sxm", "inter_size": "768", "num_tokens": "8",
        "latency_us_top8": "12", "latency_us_top6": "10",
    }  # fmt: skip
    path.write_text(",".join(columns) + "\n" + ",".join(columns.values()) + "\n")
    assert validate.main([str(path), "--leave-out", "shapes"]) == 2
    assert validate.main([str(path), "--leave-out", "device"]) == 0


def test_a_reader_that_leaves_ends_a_verb_silently(tmp_path: Path) -> None:
    table = a_table(tmp_path / "t.csv")
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "moebench.validate", str(table)],
        stdout=writer, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")
