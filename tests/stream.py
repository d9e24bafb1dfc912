"""An operation whose parameters are known, and a table of it: what fits and scores must find."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moebench.calibrate.operations.table import (
    COUNT,
    FLAG,
    MICROSECONDS,
    NAME,
    Chosen,
    OperationKind,
)
from moebench.predict.arrays import Floats, OverCases
from moebench.predict.operations.operation import Operation, Software
from moebench.predict.parameters import parameter
from moebench.spec.hardware import HardwareSpec, load_hardware

SHARE, START = 0.7, 6e-6


@dataclass(frozen=True)
class StreamParameters:
    start: float = parameter(3e-6, 0.7, "s")
    share: float = parameter(0.9, 0.3, "", ceiling=1.0)


@dataclass(frozen=True)
class StreamCalls(OverCases):
    size: Floats


def stream_time(
    p: StreamParameters, hardware: HardwareSpec, calls: StreamCalls, warm: bool
) -> Floats:
    return p.start + calls.size / (hardware.memory_bandwidth * p.share)


STREAM = Operation("stream", StreamParameters, stream_time)


def choose(names: Any) -> Chosen:
    if names["framework"] == "unknown":
        raise ValueError("column framework: found 'unknown', expected an engine")
    return Chosen(STREAM, Software(names["framework"], names["version"]))


KIND = OperationKind(
    "stream",
    {
        **dict.fromkeys(("system", "framework", "version"), NAME),
        **{"bytes": COUNT, "latency_us": MICROSECONDS, "suspect": FLAG},
    },
    ("framework", "version"),
    choose,
    lambda columns: StreamCalls(columns["bytes"].astype(float)),
    ("bytes",),
    ("system", "framework", "version"),
    "bytes",
    {"suspect": "0"},
)


PAIRS = dataclasses.replace(
    KIND,
    name="stream-pairs",
    columns={
        **{name: KIND.columns[name] for name in ("system", "framework", "version")},
        **dict.fromkeys(("topk_low", "topk_high"), KIND.columns["bytes"]),
        **dict.fromkeys(("latency_us_low", "latency_us_high"), KIND.columns["latency_us"]),
    },
    calls=lambda columns: KIND.calls({"bytes": columns["topk"] * 1e9}),
    shape=("topk_high",),
    size="topk_high",
    assumed={},
    members=(
        {"topk_high": "topk", "latency_us_high": "latency_us"},
        {"topk_low": "topk", "latency_us_low": "latency_us"},
    ),
)


def write(path: Path, devices: tuple[str, ...] = ("h100_sxm", "b200_sxm")) -> Path:
    rng, lines = np.random.default_rng(0), ["system,framework,version,bytes,latency_us,suspect"]
    for system in devices:
        bandwidth = load_hardware(system).memory_bandwidth
        for size in np.geomspace(1e4, 1e8, 40).astype(int).tolist():
            seconds = START + size / (SHARE * bandwidth)
            noisy = seconds * np.exp(rng.normal(0, 0.01)) * 1e6
            lines.append(f"{system},vllm,1.0,{size},{noisy:.4f},0")
    lines.append("h100_sxm,vllm,1.0,1000,99999,1")
    lines.append("h100_sxm,unknown,1.0,1000,5,0")
    path.write_text("\n".join(lines) + "\n")
    return path
