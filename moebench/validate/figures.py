"""Figures of predicted over measured values of a table, one for each device."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moebench.calibrate.tables import LatencyTable
from moebench.files import make_folder, replace_file
from moebench.predict.arrays import Mask
from moebench.validate.scores import Scores


def draw_latencies(table: LatencyTable, scores: Scores, folder: Path) -> list[Path]:
    """A figure of each device of a table of expert layers or matmuls; returns the files."""
    quantity = {"pairs": "ratio of top-8 to top-6", "gemm": "dense matmul latency"}
    names = ("framework", "version", "kernel_source")
    columns = [table.columns[name] for name in names if name in table.columns]
    systems = np.array(table.columns["system"])
    labels = [" ".join(each) for each in zip(*columns, strict=True)] or [""] * len(systems)
    works = np.isfinite(scores.predicted)
    if table.kind == "latency":
        works &= table.numbers["slow_tactic"] == 0
    titles = (
        quantity.get(table.kind, "MoE layer latency"),
        "m" if table.kind == "gemm" else "tokens",
    )
    return draw_devices(scores, (systems, np.array(labels), works), titles, folder)


def draw_devices(
    scores: Scores,
    rows: tuple[NDArray[Any], NDArray[Any], Mask],
    titles: tuple[str, str],
    folder: Path,
) -> list[Path]:
    """A figure of each device, a panel for each label.

    Args:
        scores: predicted and measured values, and the size that they are drawn over.
        rows: device and label of each row, and whether it is drawn.
        titles: of the quantity and of the size.
        folder: one file is written for each device.
    """
    from moebench.report.figures.accuracy import draw_accuracy

    systems, labels, shown = rows
    quantity, size = titles
    make_folder(folder)
    paths = []
    for system in sorted(set(systems[shown].tolist())):
        here = shown & (systems == system)
        ratios = scores.predicted[here] / scores.measured[here]
        title = f"{system}, {quantity}"
        drawn = draw_accuracy(labels[here].tolist(), scores.num_tokens[here], ratios, title, size)
        path = folder / f"{system}.png"
        replace_file(path, drawn)
        paths.append(path)
    return paths
