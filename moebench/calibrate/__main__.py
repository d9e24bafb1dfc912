"""`python -m moebench.calibrate` runs the verb."""

import sys

from moebench import terminal
from moebench.calibrate import main

sys.exit(terminal.run(main))
