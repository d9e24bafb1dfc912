"""The energy step: joules of one case by the counter, against power that was polled beside it."""

from moebench.doctor.first_run.checks import Mark
from moebench.doctor.first_run.step_run import StepRun
from moebench.doctor.first_run.suites import IMITATED_PLAN, available, measured_records, own_suite

BATCH = 16
DIFFERENCE = 3.0
"""Percent by which the counter and polled power may differ."""
CONTEXT = 1024


def check(run: StepRun) -> None:
    """Check one decode case: no fault, counter against power, and the counter's period."""
    names = available(run, "joules", ("triton",)) or ["grouped"]
    decode = {"phase": "decode", "batch": [BATCH], "context_length": CONTEXT}
    changes = {"router": [{"name": "top-k"}], "workload": [decode]}
    changes |= IMITATED_PLAN if run.is_imitated else {}
    suite = own_suite(run, "mixtral", **changes)
    options = ("--experts", names[0], "--energy", "quick")
    for record in measured_records(run, suite, *options):
        assert record.measurement is not None  # `measured_records` gives no others
        energy, what = record.measurement.energy, record.case.key
        if energy.joules is None:
            run.fail("joules", what, f"{energy.fault}: {energy.missing}")
            continue
        run.judge("joules", f"{what}: a step", energy.joules, Mark("", "J", needs_gpu=True))
        counter = Mark("the counter is believed", wanted="no fault")
        seen = f"{energy.fault or 'no fault'}; {energy.method}"
        run.state("joules", f"{what}: instrument", seen, energy.fault is None, counter)
        if energy.residual is None:
            run.miss("joules", f"{what}: counter against power", "power was not polled all through")
        else:
            mark = Mark("polled power, integrated", "%", -DIFFERENCE, DIFFERENCE, needs_gpu=True)
            off = 100 * energy.residual
            run.judge("joules", f"{what}: counter against polled power", off, mark)
        if energy.tick is not None:
            period = Mark("NVML moves about every 100 ms", "ms", 15, 250, needs_gpu=True)
            run.judge("joules", f"{what}: period of the counter", 1e3 * energy.tick, period)
