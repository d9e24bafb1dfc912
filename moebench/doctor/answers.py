"""What the verb answers: findings about the machine, the selftest's rates, and A/A runs."""

import argparse
import shlex
from collections.abc import Sequence

import torch

from moebench import terminal
from moebench.compare.noise import (
    LEAST_RUNS,
    NoiseFloor,
    load_noise_floor,
    load_unchanged_runs,
    save_noise_floor,
)
from moebench.doctor.record import circumstances, make_record, write_record
from moebench.doctor.selftest import LEAST_BUDGET, selftest
from moebench.doctor.text import findings_text, selftest_table, selftest_text
from moebench.doctor.timed_units import FEW_ROUNDS
from moebench.doctor.unchanged import make_unchanged_runs
from moebench.files import make_folder
from moebench.measure.devices import choose_device
from moebench.measure.environment import describe_machine
from moebench.measure.preflight import inspect_machine
from moebench.records.manifest import now
from moebench.spec.schema import encode
from moebench.units import text


def answer(options: argparse.Namespace, given: Sequence[str]) -> int:
    """Answer a parsed command line; returns the exit code."""
    device = choose_device(options.device)
    if options.selftest:
        return _selftest(device, options, given)
    if options.out is not None:
        raise ValueError("--out: only beside --selftest, whose record it keeps, and --first-run")
    if options.aa_runs is None:
        return _inspect(device, options.json)
    return _make_unchanged_runs(options.aa_runs, device, options.json)


def _inspect(device: torch.device, as_json: bool) -> int:
    machine = describe_machine(device)
    findings = inspect_machine(machine.software.num_threads, machine.cpu.num_cores)
    floor = load_noise_floor(machine.fingerprint)
    runs = len(load_unchanged_runs(machine.fingerprint).runs)
    if as_json:
        known = {"findings": encode(findings), "noise_floor": encode(floor), "aa_runs": runs}
        terminal.show_json({"schema": 1, **known})
    else:
        measured = "not measured: --selftest" if floor is None else f"±{floor.half_width:.1%}"
        kept = f"noise floor: {measured}; A/A runs kept: {runs} (compare needs {LEAST_RUNS})"
        terminal.show(f"{findings_text(findings)}\n\n{kept}")
    return 0


def _selftest(device: torch.device, options: argparse.Namespace, given: Sequence[str]) -> int:
    budget = terminal.seconds("--time-budget", options.time_budget)
    if budget < LEAST_BUDGET:
        least = text(LEAST_BUDGET, "time")
        raise ValueError(f"--time-budget: found {options.time_budget}, expected at least {least}")
    if options.out is not None:
        make_folder(options.out)
    machine = describe_machine(device)
    where = circumstances(shlex.join(["python", "-m", "moebench.doctor", *given]), device)
    with terminal.Bar(budget) as bar:
        result = selftest(device, budget, bar)
    floor = (machine.fingerprint, now(), machine.software.commit, result.noise_floor, FEW_ROUNDS)
    path = save_noise_floor(NoiseFloor(*floor))
    record = make_record(encode(result), where)
    if options.json:
        terminal.show_json(record)
    else:
        terminal.show(f"{selftest_text(result)}\n\nkept for reports: {path}")
    if options.out is not None:
        table = selftest_table(result, where)
        terminal.say(f"record: {write_record(options.out, record, table)}")
    return 1 if result.missed else 0


def _make_unchanged_runs(number: int, device: torch.device, as_json: bool) -> int:
    fingerprint = describe_machine(device).fingerprint
    path, last = make_unchanged_runs(number, device, fingerprint)
    every = load_unchanged_runs(fingerprint)
    n, deviation = len(every.runs), every.deviation(last.reference_version, last.by_parts)
    if as_json:
        terminal.show_json({"schema": 1, "runs": n, "deviation_between_runs": deviation})
    else:
        shown = f"needs {LEAST_RUNS} runs" if deviation is None else f"{deviation:.1%}"
        terminal.show(f"{n} A/A runs in {path}; standard deviation between runs: {shown}")
    return 0
