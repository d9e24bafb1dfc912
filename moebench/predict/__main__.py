"""`python -m moebench.predict` runs the verb."""

import sys

from moebench import terminal
from moebench.predict import main

sys.exit(terminal.run(main))
