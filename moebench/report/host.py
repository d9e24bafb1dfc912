"""State of host and GPU while a run was measured: load, memory, clocks, and kernels' tiles."""

from collections import Counter
from collections.abc import Mapping, Sequence

from moebench.records.host import HostLoad
from moebench.records.measurement import READ_BYTES
from moebench.records.run import Run
from moebench.units import text


def warnings(run: Run) -> tuple[str, ...]:
    """What spoils a whole run, as sentences for its heading."""
    doubts = run.manifest.calibration.get("doubts") or ()
    lines = [
        f"Doubtful: {doubt.get('seen')}; {doubt.get('meaning')}."
        for doubt in doubts
        if isinstance(doubt, Mapping)
    ]
    return (*lines, *busy_cells(_loads(run)))


def busy_cells(loads: Sequence[HostLoad]) -> tuple[str, ...]:
    """How many cells were measured on a busy machine, as one sentence; none if no cell was."""
    busy = [load for load in loads if load.is_busy]
    if not busy:
        return ()
    worst = max(busy, key=lambda load: (load.wanted > load.processors, load.wanted))
    shares = sorted(load.share for load in busy if load.share is not None)
    ends = " to ".join(dict.fromkeys(f"{share:.0%}" for share in (shares[0], shares[-1])))
    return (
        f"The machine was busy in {len(busy)} of {len(loads)} cells ({worst.finding} in the "
        f"worst), and this run got {ends} of its threads' time: its numbers are poor.",
    )


def memory_state(run: Run) -> tuple[str, ...]:
    """How fast memory was read in the run's quiet cells, in one line; none where nobody knows.

    On a busy machine a pass over memory waits for a processor, which is no state of the memory.
    """
    cells = {record.cell: record.measurement for record in run.records}
    quiet = [m for m in cells.values() if m is not None and not (m.host and m.host.is_busy)]
    times = [m.reading for m in quiet if m.reading is not None]
    if not times:
        return ()
    slowest, middle, fastest = (
        text(READ_BYTES / seconds, "bandwidth")
        for seconds in (max(times), sorted(times)[len(times) // 2], min(times))
    )
    line = f"State of the host: memory was read at {middle} ({slowest} to {fastest} by cell)"
    priced = run.manifest.calibration.get("reference_reading")
    if not isinstance(priced, float):
        return (f"{line}.",)
    return (f"{line}; predictions are for {text(READ_BYTES / priced, 'bandwidth')}.",)


def board_state(run: Run) -> tuple[str, ...]:
    """Clocks and throttling of the GPU's board over the cells of a run, as one sentence."""
    cells = {record.cell: record.measurement for record in run.records}
    boards = [m.board for m in cells.values() if m is not None and m.board is not None]
    if not boards:
        return ()
    if missing := next((board.missing for board in boards if board.missing), None):
        return (f"Clocks of the board are not known: {missing}.",)
    clocks = sorted(clock for board in boards for clock in board.sm_clocks)
    names = sorted({name for board in boards for name in board.reasons} - {"idle"})
    if not clocks:
        return ("The board does not give its clocks.",)
    low, middle, high = (
        text(clock, "frequency") for clock in (clocks[0], clocks[len(clocks) // 2], clocks[-1])
    )
    why = f"; lower clocks by {', '.join(names)}" if names else ""
    return (f"SM clock while the board worked: {middle} ({low} to {high} by round){why}.",)


def kernel_tiles(run: Run) -> tuple[str, ...]:
    """The tiles that our GPU kernels ran, each with its number of cases, as one sentence."""
    found = Counter(r.measurement.tiles for r in run.records if r.measurement)
    lines = [f"{words} in {number}" for words, number in found.items() if words is not None]
    return (f"Tiles of the expert kernels, by cases: {'; '.join(lines)}.",) if lines else ()


def _loads(run: Run) -> list[HostLoad]:
    """Load of the host in each cell that says it."""
    cells = {record.cell: record.measurement for record in run.records}
    return [m.host for m in cells.values() if m is not None and m.host is not None]
