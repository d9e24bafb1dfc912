"""`python -m moebench.trace` runs the verb."""

import sys

from moebench import terminal
from moebench.trace import main

sys.exit(terminal.run(main))
