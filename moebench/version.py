"""The version of moebench, and the folder it lies in; this module imports nothing of moebench."""

from pathlib import Path

VERSION = "0.1.0"
PACKAGE = Path(__file__).resolve().parent
"""The folder with the data files, which a checkout has suites/ and results/ beside."""
