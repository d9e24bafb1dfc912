"""Which microbenchmarks a run's predictions rest on: saved ones, or ones that are made now.

A calibration made while other programs run describes a machine that is never seen again. So one is
made when the machine is quiet, after a bounded wait, and what could not be had is said.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from moebench.calibrate.hardware_file import measured_hardware
from moebench.calibrate.microbenchmark import microbenchmarks, recheck
from moebench.calibrate.products import layouts
from moebench.files import cache_directory, replace_file
from moebench.measure.environment import Environment
from moebench.measure.host import HostMeter
from moebench.measure.latency import Progress
from moebench.predict.layers.calibration import Calibration, fit_calibration
from moebench.records.host import HostLoad
from moebench.records.results import Caveat
from moebench.records.timings import Microbenchmarks
from moebench.spec.hardware import HardwareSpec
from moebench.spec.schema import decode, encode
from moebench.units import Seconds

CALIBRATION_BUDGET: Seconds = 110.0
RECHECK_TOLERANCE = 0.20
"""Matmuls that are this far from their calibrated time make the calibration stale."""
ATTEMPTS = 2
"""Times that a quiet machine with a poor fit is measured."""
POOR = 0.50
"""A fit whose own P90 error is larger says little about the machine."""
PATIENCE: Seconds = 60.0
"""Longest wait for a quieter moment: half of what a calibration takes."""
PAUSE: Seconds = 2.0
When = Literal["stale", "always", "never"]
"""When to calibrate: if the saved calibration is stale, anew in any case, or only if none is
saved."""


@dataclass(frozen=True)
class Site:
    """What is calibrated, and how to talk about it."""

    device: torch.device
    dtype: str
    environment: Environment
    host: HostMeter
    say: Callable[[str], None]
    progress: Progress
    end: Seconds = math.inf
    """When the time for waiting and measuring is over, by the monotonic clock."""

    def left(self) -> Seconds:
        """Time that is left for waiting and measuring."""
        return max(0.0, self.end - time.monotonic())

    def p90_error(self, benchmarks: Microbenchmarks) -> float:
        """The own error of the fit to some microbenchmarks."""
        hardware = measured_hardware(self.environment, benchmarks, self.dtype)
        return fit_calibration(hardware, benchmarks, self.dtype).p90_error


def usable_benchmarks(
    site: Site, load: HostLoad, when: When
) -> tuple[Microbenchmarks, tuple[Caveat, ...]]:
    """Microbenchmarks of this machine, saved or new, and what is doubtful about using them now."""
    saved = None
    if when != "always":
        saved = load_saved(calibration_path(site.environment, site.dtype), site.environment)
    absent = _untimed(saved, site.device, site.dtype)
    if saved is None or absent:
        if absent:
            site.say(f"recalibrating: the saved calibration has no {absent}")
        return _measured(site, load), ()
    ratio = recheck(site.device, saved)
    seen = f"matmuls take {ratio:.2f} of their time in the calibration of {saved.taken_at}"
    is_off = abs(ratio - 1) > RECHECK_TOLERANCE
    if when == "never":
        site.say(f"kept as asked: {seen}")
        return saved, (_stale(f"{seen}; kept as asked (--keep-calibration)"),) * is_off
    reasons = [f"{seen}, tolerance {RECHECK_TOLERANCE:.0%}"] * is_off
    if saved.load is not None and saved.load.is_busy:
        reasons.append(f"it was made on a busy machine: {saved.load.finding}")
    is_poor = not reasons and saved.attempts < ATTEMPTS and site.p90_error(saved) > POOR
    if is_poor:
        reasons.append(f"its own P90 error is {site.p90_error(saved):.0%}")
    if saved.reference is not None and saved.reference_reading is None:
        reasons.append("it does not say how fast memory was read")
    if reasons and not load.is_busy:
        site.say(f"recalibrating: {'; '.join(reasons)}")
        return _measured(site, load, saved if is_poor else None), ()
    if reasons:
        site.say(f"not recalibrating while the machine is busy: {'; '.join(reasons)}")
        return saved, (_stale(f"{seen}, on a busy machine: {load.finding}"),) * is_off
    site.say(f"the calibration of {saved.taken_at} still holds (matmuls: {ratio:.2f})")
    return saved, ()


def _measured(site: Site, load: HostLoad, poor: Microbenchmarks | None = None) -> Microbenchmarks:
    """New microbenchmarks, made when it is quiet or after a wait, and saved.

    A poor fit is made once more when it is quieter than before, now or at a later start; the best
    one counts.
    """
    is_quiet = not load.is_busy or wait_until_quiet(site)
    tried = [_benchmarked(site, is_quiet)] if poor is None else [poor, _benchmarked(site, is_quiet)]
    found = min(tried, key=site.p90_error)
    p90 = site.p90_error(found)
    if p90 > POOR:
        site.say(f"the calibration's own P90 error is {p90:.0%}, more than {POOR:.0%}")
        is_time = len(tried) < ATTEMPTS and site.left() > CALIBRATION_BUDGET
        if is_time and wait_until_quiet(site):
            tried.append(_benchmarked(site, True))
            found = min(tried, key=site.p90_error)
    found = replace(found, attempts=len(tried))
    path = calibration_path(site.environment, site.dtype)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(encode(found), indent=1).encode())
    except (OSError, ValueError) as error:
        site.say(f"the calibration cannot be saved for the next run: {error}")
    return found


def _benchmarked(site: Site, is_quiet: bool) -> Microbenchmarks:
    site.say(
        "calibrating this machine once (under two minutes) ..."
        if is_quiet
        else "calibrating this busy machine; the next run that finds it quiet repeats it ..."
    )
    budget = min(CALIBRATION_BUDGET, site.left())
    return microbenchmarks(site.device, site.dtype, budget=budget, progress=site.progress)


def wait_until_quiet(site: Site, patience: Seconds = PATIENCE) -> bool:
    """Wait until nothing else runs, for a bounded time; whether it is quiet."""
    patience = min(patience, site.left() / 3)
    end, is_said = time.monotonic() + patience, False
    while (load := site.host.look()).is_busy:
        left = end - time.monotonic()
        if left <= 0:
            return False
        if not is_said:
            site.say(f"waiting up to {patience:.0f} s for a quieter moment: {load.finding}")
            is_said = True
        site.progress(0.0, f"waiting for a quieter moment, {left:.0f} s left")
        time.sleep(PAUSE)
    return True


def calibration_doubts(
    benchmarks: Microbenchmarks, calibration: Calibration, known: HardwareSpec | None
) -> Iterator[Caveat]:
    """What is doubtful about a calibration by itself; `known` is the machine's datasheet."""
    again = "stop other programs and run again: a quiet machine is calibrated anew"
    if benchmarks.load is not None and benchmarks.load.is_busy:
        yield Caveat(
            "busy-calibration",
            f"this machine was calibrated while it was busy: {benchmarks.load.finding}",
            "predictions are those of a machine that others slow down",
            again,
        )
    if calibration.p90_error > POOR:
        yield Caveat(
            "poor-calibration",
            f"the calibration's own P90 error is {calibration.p90_error:.0%}",
            "predictions are priced from the datasheet instead, without an interval"
            if known is not None and calibration.dtype in known.peak
            else "each prediction's interval is as wide as that error",
            again,
        )


def _stale(seen: str) -> Caveat:
    return Caveat(
        "stale-calibration",
        seen,
        "predictions are those of the machine as it was calibrated",
        "measure the machine again while it is quiet (--recalibrate)",
    )


def calibration_path(environment: Environment, dtype: str) -> Path:
    """File of the microbenchmarks of this machine and software."""
    return cache_directory() / f"{environment.fingerprint}-{dtype}.json"


def load_saved(path: Path, environment: Environment) -> Microbenchmarks | None:
    """The saved microbenchmarks; a file that cannot be read is as good as none."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        found = decode(Microbenchmarks, table, str(path))
    except (OSError, ValueError):
        return None
    return found if found.fingerprint == environment.fingerprint else None


def _untimed(benchmarks: Microbenchmarks | None, device: torch.device, dtype: str) -> str:
    """Measurements that a calibration of this machine needs and a saved one lacks, in words."""
    if benchmarks is None:
        return ""
    timed = {sample.layout for sample in benchmarks.matmuls}
    absent = [layout for layout in layouts(device, dtype) if layout not in timed]
    found = [f"matmuls with {' and '.join(absent)} weights"] if absent else []
    return " and no ".join(found + ["attention"] * (benchmarks.attention_rate is None))
