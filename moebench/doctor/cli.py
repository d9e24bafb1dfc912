"""`python -m moebench.doctor`: what on this machine spoils measurements, and how far to trust it.

    python -m moebench.doctor                 what is wrong here, and how to mend it
    python -m moebench.doctor --selftest      measure the harness itself, at most ten minutes
    python -m moebench.doctor --selftest --out results/selftest       and keep the record
    python -m moebench.doctor --aa-runs 10    run an unchanged cell ten times, for `compare`

Exit codes: 0 done, 1 the selftest missed a required rate, 2 bad input.
"""

import argparse
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from moebench import terminal
from moebench.compare.noise import (
    LEAST_RUNS,
    NoiseFloor,
    UnchangedRun,
    keep_noise_floor,
    keep_unchanged_run,
    kept_noise_floor,
    kept_unchanged_runs,
)
from moebench.compare.runs import relative_latency
from moebench.doctor.record import Circumstances, circumstances, evidence, keep
from moebench.doctor.selftest import (
    BANDS,
    FEW_ROUNDS,
    MANY_ROUNDS,
    Rate,
    Selftest,
    UnitRates,
    selftest,
)
from moebench.files import make_folder
from moebench.measure.devices import choose_device
from moebench.measure.environment import describe_machine
from moebench.measure.preflight import Finding, inspect_machine
from moebench.records.run import load_run, now
from moebench.report.document import Paragraph, markdown, plain_grid
from moebench.spec.codec import encode
from moebench.units import Seconds, quantity, text

LEAST_BUDGET: Seconds = 90.0
"""Of a selftest: less holds no experiment on the 100 ms unit."""
UNCHANGED = ("smoke", "--only", "ada-k", "--time-budget", "8 s")
"""What an A/A run runs: all phases of the smallest suite under two routers."""
SIGN = {"good": "ok  ", "bad": "BAD ", "unknown": "?   "}


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line; see the module's text for exit codes."""
    parser = terminal.parser(
        "doctor", "What on this machine spoils measurements, and how to mend it.", "--selftest"
    )
    parser.add_argument(
        "--selftest", action="store_true", help="measure the harness's own error rates here"
    )
    parser.add_argument(
        "--aa-runs",
        type=int,
        metavar="N",
        help="run an unchanged cell N times and keep what differs between runs",
    )
    terminal.add_device(parser)
    parser.add_argument(
        "--time-budget", default="9 min", metavar="TIME", help="of the selftest (default 9 min)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="keep the selftest's record: results/selftest"
    )
    options = parser.parse_args(arguments)
    given = sys.argv[1:] if arguments is None else arguments
    return terminal.run(lambda: _answer(options, given))


def _answer(options: argparse.Namespace, given: Sequence[str]) -> int:
    device = choose_device(options.device)
    if options.out is not None and not options.selftest:
        raise ValueError("--out: only beside --selftest, whose record it keeps")
    if options.selftest:
        try:
            budget = quantity(options.time_budget, "time")
        except ValueError as error:
            raise ValueError(f"--time-budget: {error}") from error
        if options.out is not None:
            make_folder(options.out)
        if budget < LEAST_BUDGET:
            raise ValueError(
                f"--time-budget: found {text(budget, 'time')}, expected at least "
                f"{text(LEAST_BUDGET, 'time')}"
            )
        return _selftest(device, budget, options.json, options.out, given)
    if options.aa_runs is not None:
        return _make_unchanged_runs(options.aa_runs, device, options.json)
    return _inspect(device, options.json)


def _inspect(device: torch.device, as_json: bool) -> int:
    environment = describe_machine(device)
    findings = inspect_machine(environment.software.num_threads, environment.cpu.num_cores)
    floor = kept_noise_floor(environment.fingerprint)
    runs = len(kept_unchanged_runs(environment.fingerprint).runs)
    if as_json:
        table = {"schema": 1, "findings": encode(findings), "noise_floor": encode(floor)}
        terminal.show_json(table | {"aa_runs": runs})
    else:
        terminal.show(findings_text(findings))
        measured = "not measured: --selftest" if floor is None else f"±{floor.half_width:.1%}"
        terminal.show(
            f"\nnoise floor: {measured}; A/A runs kept: {runs} (compare needs {LEAST_RUNS})"
        )
    return 0


def findings_text(findings: Sequence[Finding]) -> str:
    """What was found, what is bad first."""
    lines = []
    for status in ("bad", "unknown", "good"):
        for found in findings:
            if found.status != status:
                continue
            lines.append(f"{SIGN[status]} {found.name}: {found.seen}")
            if found.meaning:
                lines.append(f"       {found.meaning}")
            if found.remedy:
                lines.append(f"       → {found.remedy}")
    return "\n".join(lines)


def _selftest(
    device: torch.device,
    budget: Seconds,
    as_json: bool,
    out: Path | None,
    arguments: Sequence[str],
) -> int:
    environment = describe_machine(device)
    where = circumstances(shlex.join(["python", "-m", "moebench.doctor", *arguments]), device)
    with terminal.Bar(budget) as bar:
        found = selftest(device, budget, bar)
    floor = NoiseFloor(
        environment.fingerprint,
        now(),
        environment.software.commit,
        found.noise_floor,
        FEW_ROUNDS,
    )
    path = keep_noise_floor(floor)
    document = evidence(encode(found), where)
    if as_json:
        terminal.show_json(document)
    else:
        terminal.show(selftest_text(found))
        terminal.show(f"\nkept for reports: {path}")
    if out is not None:
        terminal.say(f"record: {keep(out, document, selftest_table(found, where))}")
    return 1 if found.missed else 0


TITLES = {
    "aa_rate": "A/A false positives",
    "power_2": f"sees 2 % in {MANY_ROUNDS} rounds",
    "power_5": f"sees 5 % in {FEW_ROUNDS} rounds",
    "coverage": "coverage of 95 %",
}


def units_of(found: Selftest) -> dict[str, UnitRates]:
    """The rates by unit of work, as columns of a table."""
    return {
        "1 ms": found.quick,
        "1 ms, 3 % drift": found.quick_drift,
        "100 ms": found.slow,
        "100 ms, 3 % drift": found.slow_drift,
    }


def selftest_table(found: Selftest, where: Circumstances) -> str:
    """The rates in Markdown: what the README quotes, and what they rest on."""
    units = units_of(found)
    rows = [
        (
            title,
            *(short_rate(getattr(unit, key)) for unit in units.values()),
            f"{BANDS[key][0]:.0%} to {BANDS[key][1]:.0%}",
        )
        for key, title in TITLES.items()
    ]
    widths = [f"±{100 * unit.half_width:.1f} %" for unit in units.values()]
    rows.append((f"A/A interval after {FEW_ROUNDS} rounds", *widths, ""))
    note = (
        f"Exact 95 % intervals in brackets. Real extra work on the 1 ms unit: 2 % seen in "
        f"{short_rate(found.real_power_2)}, 5 % in {short_rate(found.real_power_5)} of "
        f"experiments. {where}; {found.duration:.0f} s."
    )
    head = ("unit of work", *units, "required")
    return markdown((plain_grid(head, rows, (0, len(units) + 1)), Paragraph(note)))


def selftest_text(found: Selftest) -> str:
    """The rates for people."""
    units, titles = units_of(found), TITLES
    lines = [f"{'':24}" + "".join(f"{name:>30}" for name in units)]
    for key, title in titles.items():
        row = "".join(f"{rate_text(getattr(unit, key)):>30}" for unit in units.values())
        low, high = BANDS[key]
        lines.append(f"{title:24}{row}   required {low:.0%} to {high:.0%}")

    def plain(title: str, cells: Sequence[str]) -> str:
        return f"{title:24}" + "".join(f"{cell:>30}" for cell in cells)

    each: Sequence[UnitRates] = [*units.values()]
    lines += [
        plain("rounds of an A/A cell", [f"{unit.mean_rounds:.0f}" for unit in each]),
        plain("half width, 36 rounds", [f"±{unit.half_width:.2%}" for unit in each]),
        "",
        f"real extra work on the 1 ms unit: 2 % seen in {rate_text(found.real_power_2)}, "
        f"5 % in {rate_text(found.real_power_5)} experiments",
        f"noise floor: ±{found.noise_floor:.2%}; {found.duration:.0f} s",
        f"{found.rounds} rounds of {text(found.visit, 'time')} visits to a unit of "
        f"{text(found.unit, 'time')}, {found.slow_rounds} rounds of one of "
        f"{text(found.slow_unit, 'time')}",
        *(f"MISSED: {what}" for what in found.missed),
        *(f"cannot be told from so few experiments: {what}" for what in found.undecided),
    ]
    return "\n".join(lines)


def short_rate(rate: Rate) -> str:
    """A rate with its exact interval."""
    return f"{100 * rate.value:.1f} % [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"


def rate_text(rate: Rate) -> str:
    """A rate with its exact interval and what it counts."""
    return f"{rate.value:.1%} [{rate.low:.1%}, {rate.high:.1%}] n={rate.n}"


def _make_unchanged_runs(number: int, device: torch.device, as_json: bool) -> int:
    """Run the unchanged cell in processes of its own, and keep each run."""
    if number < 1:
        raise ValueError(f"--aa-runs: found {number}, expected at least 1")
    environment = describe_machine(device)
    with terminal.Bar(25.0 * number) as bar:
        for index in range(number):
            bar.tell(f"A/A run {index + 1} of {number}")
            with tempfile.TemporaryDirectory() as folder:
                run = _unchanged_run(Path(folder), device)
            path = keep_unchanged_run(environment.fingerprint, run)
    kept = kept_unchanged_runs(environment.fingerprint)
    deviation = kept.deviation(run.reference_version)
    if as_json:
        table = {"schema": 1, "runs": len(kept.runs), "deviation_between_runs": deviation}
        terminal.show_json(table)
    else:
        shown = f"needs {LEAST_RUNS} runs" if deviation is None else f"{deviation:.1%}"
        terminal.show(
            f"{len(kept.runs)} A/A runs in {path}; standard deviation between runs: {shown}"
        )
    return 0


def _unchanged_run(folder: Path, device: torch.device) -> UnchangedRun:
    """One run in a fresh process, since memory and threads fall into place anew in each.

    Raises:
        ValueError: the suite failed, or gave no case.
    """
    command = [sys.executable, "-m", "moebench.suite", *UNCHANGED, "--device", str(device)]
    done = subprocess.run([*command, "--out", str(folder)], capture_output=True, text=True)
    manifests = [*folder.glob("*/*/*/manifest.json")]
    if done.returncode != 0 or not manifests:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"an A/A run ended with exit code {done.returncode}: {last}")
    run = load_run(manifests[0].parent)
    measurements = {r.case.key: r.measurement for r in run.records if r.measurement}
    versions = {m.reference.version for m in measurements.values() if m.reference}
    if len(versions) != 1:
        raise ValueError("an A/A run gave no latencies beside a reference operation")
    return UnchangedRun(
        datetime.now(UTC).isoformat(timespec="seconds"),
        run.manifest.commit,
        versions.pop(),
        {key: relative_latency(m).value for key, m in measurements.items()},
    )
