"""A row of published end-to-end points, and a table of such rows."""

import csv
from pathlib import Path

ROW = {
    "id": "a", "source": "somebody", "model": "mixtral-8x7b", "hardware": "h100-sxm",
    "num_gpus": "2", "tp": "2", "ep": "1", "dtype": "fp8", "kv_dtype": "fp8",
    "framework": "TensorRT-LLM 0.9", "phase": "prefill+decode", "batch_or_concurrency": "64",
    "input_len": "128", "output_len": "128", "metric": "output_throughput_per_gpu",
    "unit": "tok/s/GPU", "value": "3000", "note": "",
}  # fmt: skip


def table(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0]])
        writer.writeheader()
        writer.writerows(rows)
    return path
