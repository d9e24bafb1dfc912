"""Published points of a source or a group that the engine's fit has not used."""

from pathlib import Path

import pytest
from published_rows import ROW, table

from moebench.calibrate.published.tables import read_published
from moebench.validate import cli as validate
from moebench.validate.left_out_points import left_out_price

OWN = {"phase": "decode", "unit": "ms", "framework": "vllm 0.11", "dtype": "bfloat16"}


def rows(slower: str, factor: float) -> list[dict[str, str]]:
    """Closed loops of two models, each from a source of its own; one model's times are scaled."""
    found = []
    for model, token, first in (("mixtral-8x7b", 14.0, 60.0), ("qwen3-30b-a3b", 9.0, 40.0)):
        for size in (4, 8, 16, 32):
            for metric, value in (("tpot_median", token), ("ttft_median", first)):
                scale = (factor if model == slower else 1.0) * (1 + size / 64)
                own = {"model": model, "source": model, "metric": metric}
                own |= {"value": f"{value * scale}", "batch_or_concurrency": f"{size}"}
                found.append(ROW | OWN | own)
    return found


@pytest.mark.parametrize("holdout", ["group", "source"])
def test_measurements_of_what_is_left_out_change_nothing(holdout: str, tmp_path: Path) -> None:
    def predicted(factor: float) -> dict[str, list[float]]:
        path = table(tmp_path / "t.csv", rows("mixtral-8x7b", factor))
        points = read_published(path).points
        price = left_out_price(points, holdout)
        return {
            model: [price(point).value for point in points if point.model == model]
            for model in ("mixtral-8x7b", "qwen3-30b-a3b")
        }

    before, after = predicted(1.0), predicted(1.5)
    assert after["mixtral-8x7b"] == pytest.approx(before["mixtral-8x7b"], rel=1e-6)
    ratios = [b / a for a, b in zip(before["qwen3-30b-a3b"], after["qwen3-30b-a3b"], strict=True)]
    assert min(ratios) > 1.02, "an engine that was slower elsewhere is slower here"


def test_one_group_alone_cannot_be_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = table(tmp_path / "t.csv", rows("", 1.0)[:8])
    assert validate.main([str(path), "--leave-out", "group"]) == 2
    assert validate.main([str(path), "--leave-out", "device"]) == 2
    assert "'source' or 'group'" in capsys.readouterr().err
