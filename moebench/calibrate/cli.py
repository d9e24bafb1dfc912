"""`python -m moebench.calibrate`: calibrate this machine, or fit the GPU model to measured tables.

    python -m moebench.calibrate
    python -m moebench.calibrate --from latencies.csv.gz --from gemm.csv.gz --out calibration/
    python -m moebench.calibrate --energy power.csv --models models.csv --out energy/

The first runs microbenchmarks here (under two minutes) and keeps them and the prices fitted to them
for the suites. The second writes a file for each kernel, dense.toml from dense matmuls and, with
`--intervals`, intervals.toml, as in moebench/data/kernels; of tables of attention or communication
a file for each operation and software, as in moebench/data/operations; of tables of published
end-to-end points engine.toml, as in moebench/data. The third writes a file for
each GPU and one for all others, as in moebench/data/energy.
"""

from collections.abc import Sequence
from pathlib import Path

from moebench import terminal
from moebench.calibrate.from_tables import calibrate
from moebench.calibrate.operations.from_tables import calibrate_operations, operation_tables
from moebench.calibrate.published.engine import calibrate_engines, published_tables
from moebench.calibrate.published.training import calibrate_trainers
from moebench.calibrate.tables import read_table
from moebench.files import make_folder
from moebench.units import text


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and calibrate; 0 done, 2 bad input, 3 rows could not be read."""
    parser = terminal.parser(
        "calibrate",
        "Calibrate this machine, or fit the GPU model to measured tables.",
        "--from latencies.csv.gz --out calibration",
    )
    parser.add_argument(
        "--from", dest="tables", metavar="TABLE", type=Path, action="append",
        help="measured layer latencies, top-k pairs, dense matmuls, attention, communication or "
        "published end-to-end points; may be repeated. Left out: calibrate this machine",
    )  # fmt: skip
    parser.add_argument(
        "--energy", metavar="TABLE", type=Path, nargs="+",
        help="fit the energy model to tables of measured serving power and energy instead",
    )  # fmt: skip
    parser.add_argument(
        "--models", metavar="TABLE", type=Path, help="with --energy: facts of the MoE backbones"
    )
    parser.add_argument("--out", type=Path, default=Path("calibration"), help="folder to write to")
    parser.add_argument(
        "--intervals", action="store_true",
        help="also calibrate the 90 %% intervals by leaving devices and shapes out (minutes)",
    )  # fmt: skip
    terminal.add_device(parser)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    options = parser.parse_args(arguments)
    if options.energy:
        if options.models is None or options.tables:
            parser.error("--energy: needs --models TABLE, and not --from")
        from moebench.calibrate.energy_files import calibrate_energy

        return terminal.run(lambda: calibrate_energy(options.energy, options.models, options.out))
    if options.tables:
        return terminal.run(
            lambda: _calibrate_tables(options.tables, options.out, options.intervals)
        )
    return terminal.run(lambda: _calibrate_here(options.device, options.dtype, options.json))


def _calibrate_tables(paths: Sequence[Path], out: Path, intervals: bool) -> int:
    """Exit status of fitting measured tables: 0 done, 3 some rows could not be read."""
    if engines := published_tables(paths):
        make_folder(out)
        calibrate_engines(engines, out)
        calibrate_trainers(engines, out)
        return 3 if any(table.problems for table in engines) else 0
    operations, others = operation_tables(paths)
    if operations and others:
        raise ValueError(
            f"--from: found {operations[0].kind.name} beside other tables, expected experts and "
            "dense matmuls apart from attention and communication"
        )
    make_folder(out)
    if operations:
        calibrate_operations(operations, out, intervals)
        return 3 if any(table.problems for table in operations) else 0
    tables = [read_table(path) for path in others]
    kinds = {table.kind for table in tables}
    if intervals and not {"latency", "pairs"} <= kinds:
        found = ", ".join(sorted(kinds))
        raise ValueError(
            f"--intervals: found tables of {found}, expected layer latencies and top-k pairs"
        )
    calibrate(tables, out, intervals)
    return 3 if any(table.has_problems for table in tables) else 0


def _calibrate_here(device_name: str, dtype: str, as_json: bool) -> int:
    """Measure this machine anew, fit it and save both."""
    from moebench.calibrate.machine import keep_fit, prepare_machine
    from moebench.calibrate.saved import CALIBRATION_BUDGET
    from moebench.measure.devices import choose_device

    device = choose_device(device_name)
    with terminal.Bar(CALIBRATION_BUDGET) as bar:
        machine = prepare_machine(device, dtype, calibrate="always", say=bar.say, progress=bar)
    path = keep_fit(machine)
    fit = machine.calibration
    if as_json:
        terminal.show(path.read_text(encoding="utf-8").rstrip())
        return 0
    facts = {
        what if layout == "plain" else f"{what}, {layout}": value
        for layout, prices in fit.matmuls.items()
        if layout == "plain" or prices != fit.matmuls["plain"]
        for what, value in {
            "matmul rate": text(prices.rate, "rate"),
            "matmul bandwidth": text(prices.bandwidth, "bandwidth"),
            "row overhead": f"{prices.row_overhead:.1f} rows",
            "overlap exponent": f"{prices.overlap:.2f}",
        }.items()
    } | {
        "copy bandwidth": text(fit.copy_bandwidth, "bandwidth"),
        "small call": text(fit.launch_overhead, "time"),
        "launch by the host": text(fit.host_launch, "time") if fit.host_launch else "none ahead",
        "reference operation": text(fit.reference, "time") if fit.reference else "not measured",
    }
    terminal.show(f"{machine.hardware.title}, {dtype}: {fit.name}")
    terminal.show("\n".join(f"  {name:24} {value}" for name, value in facts.items()))
    for doubt in fit.doubts:
        terminal.show(f"⚠ {doubt.sentence}")
    terminal.show(f"saved for the suites: {path}")
    return 0
