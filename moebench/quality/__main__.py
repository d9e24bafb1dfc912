"""`python -m moebench.quality` runs the verb."""

import sys

from moebench import terminal
from moebench.quality import main

sys.exit(terminal.run(main))
