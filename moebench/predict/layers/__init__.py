"""A layer of this repository priced by this machine's own calibration: ops times prices."""
