"""The predictions of the model of a kernel as a document: every input, then every share."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from moebench.predict.roofline.assumptions import Assumptions
from moebench.predict.roofline.compiled import compiled_tiles
from moebench.predict.roofline.layer import ExpertLayer, LayerTime, capability_of, own_layer
from moebench.spec.hardware import HardwareSpec, load_hardware
from moebench.spec.model import load_model

DEVICES = ("a100-sxm-80gb", "h100-sxm", "h200-sxm", "b200-sxm")
MODELS = ("mixtral-8x7b", "qwen3-30b-a3b", "deepseek-v3")
TOKENS = (1, 4, 16, 64, 256, 1024, 4096)
TITLE = "# Predicted share of the roofline of our Triton kernels"
PREAMBLE = """\
**Predicted, no GPU has run it.** Written by `python -m moebench.predict.roofline`. The routed
experts of one layer in bf16: up with activation, down, and the sum over a token's experts; no
routing, no shared expert. Tokens choose their experts independently and uniformly; weights come
from DRAM. The *roofline* is the larger of two times: the weights of the touched experts once at the
datasheet's bandwidth, or the useful FLOPs at its dense peak.

A kernel's programs run in waves. A wave takes the longest of four times: DRAM; L2; tensor cores,
padding included; *loads in flight*, which by Little's law move (bytes in flight) / (latency) bytes
a second. A launch, the first program's start and the last one's end are added. No number of the
model was fitted. How far it is off where others measured: [model-check.md](model-check.md).
"""
COLUMNS = """\
- *share*: the roofline's time over the predicted time; in brackets with every assumption at its
  unfavourable and at its favourable end.
- *rows*: of a tile; *padding*: rows of all tiles over assignments; *parts*: programs that share one
  sum of down.
- *waves*: programs over those that the device holds at once, of up and of down. *in flight*: KiB a
  multiprocessor has in flight. *bound*: the longest of the four times. *start and end*: the part of
  the time that launches, first programs and the sum over experts take.
"""


def document() -> str:
    """The whole document in Markdown."""
    parts = [TITLE, PREAMBLE, "## Inputs", "Devices, from `moebench/data/hardware`:", _devices()]
    parts += ["Kernels, from the compile report (`moebench/data/tiles/compiled.csv`):", _kernels()]
    parts += ["Assumptions, the same for every device:", _assumptions()]
    parts += ["## Predicted", COLUMNS, _predictions()]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _devices() -> str:
    rows = []
    for name in DEVICES:
        device = load_hardware(name)
        rows.append(
            {
                "device": device.title,
                "multiprocessors": str(device.num_processors),
                "clock, GHz": f"{(device.clock or 0) / 1e9:.2f}",
                "bandwidth, TB/s": f"{device.memory_bandwidth / 1e12:.2f}",
                "bf16 peak, TFLOP/s": f"{device.peak_for('bfloat16') / 1e12:.0f}",
                "L2, MiB": f"{device.cache / 2**20:.0f}",
                "source": device.source,
            }
        )
    return table(rows)


def _kernels() -> str:
    capabilities = {capability_of(load_hardware(name)) for name in DEVICES}
    return table(
        [
            {
                "target": f"sm_{tile.capability}",
                "kernel": tile.kernel,
                "tile": f"{tile.rows} x {tile.columns} x {tile.depth}",
                "stages": str(tile.stages),
                "blocks per SM": str(tile.blocks),
                "tensor cores": tile.tensor_cores,
            }
            for tile in compiled_tiles()
            if tile.maker == "ours" and tile.capability in capabilities
        ]
    )


def _assumptions() -> str:
    rows = []
    for entry in dataclasses.fields(Assumptions):
        facts = entry.metadata
        scale = 1e6 if facts["unit"] == "s" else 1
        low, middle, high = (
            f"{scale * value:g}"
            for value in (facts["fast"], getattr(Assumptions, entry.name), facts["slow"])
        )
        rows.append(
            {
                "assumption": entry.name,
                "value": middle,
                "favourable": low,
                "unfavourable": high,
                "unit": "us" if facts["unit"] == "s" else facts["unit"],
                "basis": facts["basis"],
            }
        )
    return table(rows)


def _predictions() -> str:
    rows = []
    for name in DEVICES:
        device = load_hardware(name)
        for model in MODELS:
            for tokens in TOKENS:
                layer = ExpertLayer.of(load_model(model), tokens)
                rows.append({"device": name, "layer": model} | _row(layer, device))
    return table(rows)


def _row(layer: ExpertLayer, device: HardwareSpec) -> dict[str, str]:
    middle = own_layer(layer, device, Assumptions())
    ends = [own_layer(layer, device, ends()) for ends in (Assumptions.slow, Assumptions.fast)]
    low, high = (100 * end.share for end in ends)

    def both(name: str, form: str, scale: float = 1.0) -> str:
        values = [getattr(time, name) for time in middle.matmuls]
        return ", ".join(
            value if isinstance(value, str) else format(scale * value, form) for value in values
        )

    return {
        "tokens": str(layer.tokens),
        "predicted us": f"{1e6 * middle.seconds:.1f}",
        "predicted share": f"{100 * middle.share:.0f} % [{low:.0f}, {high:.0f}]",
        "rows": str(middle.tiles[0].rows),
        "padding": f"{middle.padding:.2f}",
        "parts": str(middle.parts),
        "waves": both("waves", ".2f"),
        "in flight, KiB": both("bytes_in_flight", ".0f", 1 / 1024),
        "bound": both("bound", ""),
        "start and end": f"{100 * _overhead(middle):.0f} %",
    }


def _overhead(time: LayerTime) -> float:
    """Share of the time that is no wave of a matmul."""
    waves = sum(matmul.seconds - matmul.overhead for matmul in time.matmuls)
    return 1 - waves / time.seconds


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A table in Markdown; all rows have the first one's columns."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(row.values() for row in rows)]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
