"""The page of a first run: a line for each check, and how steps ended that ended badly."""

from collections.abc import Iterator

from moebench.doctor.first_run.checks import Check
from moebench.doctor.first_run.results import FirstRun, StepResult
from moebench.units import printable

HEAD = "| checked | seen | expected (source) | verdict |\n|---|---|---|---|"
SIMULATED = (
    "**Every line is of an imitation of a GPU on a processor. No GPU has run anything.** Times, "
    "and what is made from them, are shown and not judged."
)


def first_run_page(run: FirstRun) -> str:
    """The page in Markdown, of a run as far as it has come."""
    is_imitated = run.provenance == "simulated"
    counts = ", ".join(f"{number} {verdict}" for verdict, number in sorted(run.verdicts.items()))
    lines = [
        f"# {'SIMULATED: ' if is_imitated else ''}First run on {_cell(run.board)}",
        "",
        *([SIMULATED, ""] if is_imitated else []),
        f"{_cell(run.software)}; {run.started_at}; `{_cell(run.command)}`.",
        "",
        f"**{counts}.** Records of a step are in `records/<step>/` of `first-run.tgz`.",
    ]
    for step in run.steps:
        lines += ["", *_step_lines(step)]
    return "\n".join(lines) + "\n"


def _step_lines(result: StepResult) -> Iterator[str]:
    step, ending = result.step, result.ending
    took = "left out" if ending is None else f"{ending.seconds:.0f} of {result.limit:.0f} s"
    yield f"## {step.title} (`{step.name}`, {took})"
    yield ""
    yield from HEAD.split("\n")
    for check in result.checks:
        yield _line(check)
    if ending is not None and ending.stderr_tail and (ending.exit_code or ending.was_killed):
        yield from ("", "The end of its stderr:", "")
        yield from (f"    {printable(line)}" for line in ending.stderr_tail.splitlines())


def _line(check: Check) -> str:
    seen = check.seen if check.seen is not None else check.reason
    verdict = f"**{check.verdict}**" if check.verdict == "fail" else check.verdict
    cells = (check.what, seen, check.expected, verdict)
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(text: str) -> str:
    """Text that stays within its cell of a table, on one line."""
    return printable(" ".join(text.split())).replace("|", "\\|")
