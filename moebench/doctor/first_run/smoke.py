"""The smoke step: every router and phase at toy size, with the kernels and without."""

from moebench.doctor.first_run.checks import Mark
from moebench.doctor.first_run.step_run import StepRun
from moebench.doctor.first_run.suites import OFF, available, judge_launches, measured_records

BACKENDS = ("triton", "grouped")


def check(run: StepRun) -> None:
    """Check that all cases run, decode in graphs, with memory read from the device."""
    names = available(run, "records", BACKENDS)
    records = measured_records(run, "smoke", "--experts", ",".join(names), *OFF)
    measured = [record.measurement for record in records if record.measurement]
    if "triton" in names:
        judge_launches(run, "records", records, "triton")
    kinds = [caveat.kind for m in measured for caveat in m.caveats]
    none = Mark("a step that never waits can be captured", "rows", at_most=0)
    run.judge("records", "rows that could not be captured", kinds.count("not-captured"), none)
    lacking = sum(not m.memory.device_used or not m.memory.peak for m in measured)
    every = Mark("NVML and torch say it", "rows", at_most=0)
    run.judge("records", "rows without memory of the device and peak", lacking, every)
