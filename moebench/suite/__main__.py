"""`python -m moebench.suite` runs the verb."""

import sys

from moebench import terminal
from moebench.suite import main

sys.exit(terminal.run(main))
