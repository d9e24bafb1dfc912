"""`python -m moebench.doctor.imitation [--boards N] [--folder DIR] MODULE ARGUMENTS...`."""

import argparse
import runpy
import sys
import tempfile
from pathlib import Path

from moebench.doctor.imitation.imitate import imitated_gpu


def main(arguments: list[str]) -> None:
    """Run a module as `python -m MODULE` does, on an imitated GPU."""
    parser = argparse.ArgumentParser(
        "python -m moebench.doctor.imitation", description=main.__doc__
    )
    parser.add_argument("--boards", type=int, default=1, help="number of GPUs (default 1)")
    parser.add_argument("--folder", type=Path, help="keep the library and all caches here")
    parser.add_argument("module", help="moebench.suite, for example")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="those of the module")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        sys.argv = [options.module, *options.arguments]
        with imitated_gpu(folder, options.boards):
            runpy.run_module(options.module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
