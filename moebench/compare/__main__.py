"""`python -m moebench.compare` runs the verb."""

import sys

from moebench import terminal
from moebench.compare import main

sys.exit(terminal.run(main))
