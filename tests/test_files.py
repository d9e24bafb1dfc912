"""Files that several processes write at once."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
from pathlib import Path
from moebench.files import replace_file

path, mark = Path(sys.argv[1]), sys.argv[2].encode()
print(flush=True)
sys.stdin.readline()
for _ in range(200):
    replace_file(path, mark * 100_000)
"""


def test_of_two_processes_that_replace_one_file_each_leaves_it_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    both = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(path), mark],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for mark in "ab"
    ]
    for process in both:
        assert process.stdout is not None and process.stdin is not None
        process.stdout.readline()
    for process in both:
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
    seen = set()
    while any(process.poll() is None for process in both):
        if path.exists():
            data = path.read_bytes()
            seen.add((len(data), *{*data}))
    for process in both:
        assert process.communicate()[1] == b"" and process.returncode == 0
    assert seen <= {(100_000, ord("a")), (100_000, ord("b"))}
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
