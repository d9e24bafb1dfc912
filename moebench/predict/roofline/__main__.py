"""`python -m moebench.predict.roofline` prints what share of the roofline our kernels should reach.

No GPU has run them: every input is printed beside the predictions.
"""

import argparse
import sys
from pathlib import Path

from moebench import terminal
from moebench.files import replace_file


def main() -> int:
    """Print the document, or write it to a file."""
    from moebench.predict.roofline.document import document

    parser = argparse.ArgumentParser(
        prog="python -m moebench.predict.roofline",
        description="Predict the share of the roofline of our Triton kernels, without a GPU.",
        epilog="example: python -m moebench.predict.roofline --out model.md",
    )
    parser.add_argument("--out", type=Path, help="write the document to this file instead")
    out = parser.parse_args().out
    if out is None:
        terminal.show(document().rstrip())
    else:
        replace_file(out, document().encode())
    return 0


if __name__ == "__main__":
    sys.exit(terminal.run(main))
