"""`python -m moebench.report` runs the verb."""

import sys

from moebench import terminal
from moebench.report import main

sys.exit(terminal.run(main))
