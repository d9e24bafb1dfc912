"""The smoke step: every router and phase at toy size, with the kernels and without."""

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

BACKENDS = ("triton", "grouped")
IMITATED = {
    "router": [{"name": "top-k"}, {"name": "ada-k"}],
    "workload": [
        {"phase": "decode", "batch": [1], "context_length": 64},
        {"phase": "prefill", "sequence_length": [64]},
    ],
}


def check(run: StepRun) -> None:
    """Check that all cases run, decode in graphs, with memory read from the device."""
    names = available(run, "records", BACKENDS[:1] if run.is_imitated else BACKENDS)
    suite = own_suite(run, "smoke", **(IMITATED | IMITATED_PLAN if run.is_imitated else {}))
    records = measured_records(run, suite, "--experts", ",".join(names), *OFF)
    measured = [record.measurement for record in records if record.measurement]
    if "triton" in names:
        judge_launches(run, "records", records, "triton")
    kinds = [caveat.kind for m in measured for caveat in m.caveats]
    none = Mark("a step that never waits can be captured", "rows", at_most=0)
    run.judge("records", "rows that could not be captured", kinds.count("not-captured"), none)
    lacking = sum(not m.memory.device_used or not m.memory.peak for m in measured)
    every = Mark("NVML and torch say it", "rows", at_most=0)
    run.judge("records", "rows without memory of the device and peak", lacking, every)
