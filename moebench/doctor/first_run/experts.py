"""The experts step: expert backends of others beside ours, every entry with its samples."""

import math
from statistics import mean, median

from moebench.doctor.first_run.checks import Mark
from moebench.doctor.first_run.step_run import StepRun
from moebench.doctor.first_run.suites import IMITATED_SCALE, available, own_suite, run_suite
from moebench.records.experts_run import ExpertsResult, load_experts_run

BACKENDS = ("grouped", "triton", "transformers-grouped-mm")
OURS, BASELINE = "triton", "transformers-grouped-mm"
IMITATED = {
    "title": "imitated",
    "model": "mixtral-8x7b",
    "scale": IMITATED_SCALE,
    "tokens": [1, 16],
    "mixes": ["fixed"],
    "train": [],
}


def check(run: StepRun) -> None:
    """Check that every backend has samples of every cell that was measured."""
    names = available(run, "backends", BACKENDS)
    changes = {"shape": [IMITATED], "rounds": 2} if run.is_imitated else {}
    suite = own_suite(run, "experts", **changes)
    found = load_experts_run(run_suite(run, suite, "--experts", ",".join(names)))
    cells = found.cells
    run.judge("suite", "cells measured", len(cells), Mark("the plan", "cells", at_least=1))
    left = len(found.manifest.cells) - len(cells)
    run.judge("suite", "cells left out for lack of time", left, Mark("", "cells"))
    for cell in cells:
        for entry, message in cell.errors.items():
            run.fail("backends", f"{cell.plan.key}: {entry}", message)
    whole = Mark("each backend runs each cell", "entries", at_most=0)
    for name in names if cells else ():
        missing = sum(
            not cell.samples.get(name, {}).get(mix) for cell in cells for mix in cell.loads
        )
        run.judge("backends", f"{name}: entries without samples", missing, whole)
    ratios = [ratio for cell in cells if (ratio := _ratio(cell)) is not None]
    if ratios:
        times = Mark("", "times its time", needs_gpu=True)
        what = f"{OURS} over {BASELINE}, geometric mean of {len(ratios)} cells"
        run.judge("backends", what, math.exp(mean(map(math.log, ratios))), times)


def _ratio(cell: ExpertsResult) -> float | None:
    """Time of our kernels over that of the baseline, first mix; None where one was not timed."""
    mix = next(iter(cell.loads))
    times = [cell.samples.get(name, {}).get(mix) for name in (OURS, BASELINE)]
    if not all(times):
        return None
    ours, theirs = (median(seconds for *_, seconds in each or ()) for each in times)
    return ours / theirs
