"""`python -m moebench.doctor` runs the verb."""

import sys

from moebench import terminal
from moebench.doctor import main

sys.exit(terminal.run(main))
