"""Tables of published changes of routing: what is read, what is assumed, laws of the ratio."""

import csv
import json
from pathlib import Path

import pytest

from moebench.calibrate.published.routing_prices import mean_of_two, routing_price
from moebench.calibrate.published.routing_tables import RoutingChange, read_routing_changes
from moebench.validate import cli as validate

ROW = {
    "id": "a", "source": "somebody", "model": "qwen3-30b-a3b", "hardware": "h100-sxm",
    "num_gpus": "1", "tp": "1", "dtype": "bfloat16", "framework": "vllm", "phase": "decode",
    "level": "moe", "batch": "16", "k_from": "8", "k_to": "4", "distinct_from": "",
    "distinct_to": "", "metric": "speedup", "value_from": "", "value_to": "", "unit": "",
    "time_ratio": "1.5", "note": "",
}  # fmt: skip


def table(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0]])
        writer.writeheader()
        writer.writerows(rows)
    return path


def change(tmp_path: Path, **changes: str) -> RoutingChange:
    (found,) = read_routing_changes(table(tmp_path / "t.csv", [ROW | changes])).changes
    return found


def ratio(tmp_path: Path, **changes: str) -> float:
    return routing_price(change(tmp_path, **changes)).value


@pytest.mark.parametrize(
    ("stated", "mean"),
    [("4", 4.0), ("2.58", 2.58), ("top-3", 3.0), ("two", 2.0), ("adaptive", None)],
)
def test_k_may_be_fractional_or_words(stated: str, mean: float | None, tmp_path: Path) -> None:
    assert change(tmp_path, k_to=stated).mean_k_to == mean


def test_a_missing_ratio_is_that_of_times_or_of_throughputs(tmp_path: Path) -> None:
    values = {"time_ratio": "", "value_from": "30", "value_to": "20"}
    assert change(tmp_path, unit="ms", **values).time_ratio == pytest.approx(1.5)
    assert change(tmp_path, unit="tok/s", **values).time_ratio == pytest.approx(2 / 3)
    assert change(tmp_path, value_from="30").time_ratio == 1.5


def test_a_mean_lies_on_the_two_whole_numbers_next_to_it() -> None:
    assert mean_of_two(2.25) == pytest.approx((0, 0, 0.75, 0.25))
    assert mean_of_two(0.25) == pytest.approx((0.75, 0.25)) and mean_of_two(2) == (0, 0, 1)


def test_fewer_experts_are_never_slower_and_none_less_changes_nothing(tmp_path: Path) -> None:
    found = [ratio(tmp_path, k_to=k) for k in ("8", "6", "4.5", "2")]
    assert found[0] == pytest.approx(1.0) and found == sorted(found)
    assert 1 < ratio(tmp_path, level="model", k_to="2") < found[3], "attention does not shrink"


def test_counted_experts_replace_those_of_the_routing(tmp_path: Path) -> None:
    own = {"k_to": "8", "distinct_from": "60"}
    fewer, least = (ratio(tmp_path, distinct_to=d, **own) for d in ("40", "20"))
    assert 1 < fewer < least
    reused = {"k_to": "3", "note": "further slots reuse the set", "distinct_from": "60"}
    assert ratio(tmp_path, distinct_to="40", **reused) == pytest.approx(fewer), "8 experts a token"


def test_an_unstated_batch_is_assumed_and_widens_the_interval(tmp_path: Path) -> None:
    stated, unstated = (routing_price(change(tmp_path, batch=b)) for b in ("4", ""))
    assert not stated.assumed and "4 sequences" in unstated.assumed
    assert stated.value == pytest.approx(unstated.value)
    assert unstated.low <= stated.low < stated.high <= unstated.high
    assert unstated.high / unstated.low > stated.high / stated.low


def test_lines_keep_their_order_and_say_why_they_have_no_price(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        ROW | {"k_to": "adaptive"},
        ROW,
        ROW | {"model": "gpt-9"},
        ROW | {"time_ratio": ""},
        ROW | {"num_gpus": "", "tp": "", "batch": "", "framework": "", "dtype": ""},
    ]
    written = tmp_path / "r.csv"
    assert (
        validate.main([str(table(tmp_path / "t.csv", rows)), "--json", "--rows", str(written)]) == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["n"] == 2 and sum(found["assumed"].values()) == 1
    with written.open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["row"] for line in lines] == ["1", "2", "3", "4", "5"]
    for line, why in zip(lines, ["adaptive", "", "gpt-9", "time_ratio", ""], strict=True):
        assert why in line["reason"] and bool(line["reason"]) == bool(why)
        assert bool(line["predicted"] and line["low"] and line["high"]) != bool(why)
