"""Files of data/kernels: fits of kernels and of dense matmuls, widths of intervals."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from moebench.files import replace_file
from moebench.predict.kernels.catalogue import Kernel, KernelFit
from moebench.predict.kernels.dense import DenseParameters
from moebench.predict.kernels.intervals import Bounds, Widths

COMMAND = "python -m moebench.calibrate --from TABLE"


def write_toml(path: Path, values: Mapping[str, Any]) -> Path:
    """Write a TOML file; returns its path."""
    import tomli_w  # only what writes a file needs it

    replace_file(path, tomli_w.dumps(values).encode())
    return path


def rounded(value: Any, form: str = ".4g") -> Any:
    """A value with all its floats, however deep, as a format prints them."""
    if isinstance(value, float):
        return float(format(value, form))
    if isinstance(value, Mapping):
        return {key: rounded(item, form) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [rounded(item, form) for item in value]
    return value


def write_fits(fits: Iterable[KernelFit], folder: Path) -> list[Path]:
    """Write one file for each kernel, with one `[[fit]]` for each device; returns the files."""
    by_kernel: dict[Kernel, list[dict[str, Any]]] = {}
    for fit in sorted(fits, key=lambda fit: fit.system):
        entry = rounded(dataclasses.asdict(fit))
        del entry["kernel"]
        by_kernel.setdefault(fit.kernel, []).append(entry)
    note = f"Written by `{COMMAND}`; SI units."
    paths = []
    for kernel, entries in by_kernel.items():
        values = {"note": note, "kernel": dataclasses.asdict(kernel), "fit": entries}
        paths.append(write_toml(folder / f"{kernel.label}.toml", values))
    return paths


def write_dense(
    fits: Mapping[str, DenseParameters], widths: Mapping[str, Bounds], path: Path, note: str
) -> Path:
    """Write dense.toml: the fit of each device by hardware name, and widths by what is unseen.

    `note` says table and errors.
    """
    values = {
        "note": f"Written by `{COMMAND}`; SI units. {note}",
        "device": {name: rounded(dataclasses.asdict(fit)) for name, fit in fits.items()},
        "interval": rounded(widths, ".4f"),
    }
    return write_toml(path, values)


def write_widths(widths: Widths, path: Path, note: str) -> Path:
    """Write intervals.toml; `note` names the tables."""
    what = "[5 %, 95 %] quantiles of log(measured / predicted) by token regime"
    values = rounded(dataclasses.asdict(widths), ".4f")
    origin = f"Written by `{COMMAND} --intervals`: {what}. {note}"
    return write_toml(path, {"note": origin, **values})
