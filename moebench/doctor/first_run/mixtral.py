"""The mixtral step: Ada-K beside top-k on layers of full size, and the errors of the prediction."""

import math
from statistics import median

from moebench.doctor.first_run.checks import Mark
from moebench.doctor.first_run.step_run import StepRun
from moebench.doctor.first_run.suites import (
    IMITATED_PLAN,
    OFF,
    available,
    judge_launches,
    measured_records,
    own_suite,
)

ROUTER = "ada-k"
IMITATED = {"workload": [{"phase": "decode", "batch": [16], "context_length": 64}]}


def check(run: StepRun) -> None:
    """Check that it runs in graphs; show speedups and errors of prediction, which have no mark."""
    names = available(run, "decode", ("triton",)) or ["grouped"]
    suite = own_suite(run, "mixtral", **(IMITATED | IMITATED_PLAN if run.is_imitated else {}))
    records = measured_records(run, suite, "--experts", names[0], "--only", ROUTER, *OFF)
    judge_launches(run, "decode", records, names[0])
    times = Mark("", "times as fast", needs_gpu=True)
    for record in records:
        for ratio in record.ratios:
            if ratio.kind == "speedup" and record.case.router.name == ROUTER:
                what = f"{record.cell}: {ratio.target} over {ratio.baseline}"
                run.judge("decode", what, ratio.value, times)
    errors = [
        abs(math.log(record.estimate.latency / record.measurement.latency.value))
        for record in records
        if record.measurement
    ]
    if errors:
        factor = Mark("", "times off", needs_gpu=True)
        run.judge("decode", "prediction of latency, median", math.exp(median(errors)), factor)
