"""`python -m moebench.validate` runs the verb."""

import sys

from moebench import terminal
from moebench.validate import main

sys.exit(terminal.run(main))
