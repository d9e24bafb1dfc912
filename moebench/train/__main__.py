"""`python -m moebench.train` runs the verb."""

import sys

from moebench import terminal
from moebench.train import main

sys.exit(terminal.run(main))
