"""Our own GPU kernels, and their properties that need no GPU.

`tiles` cuts the work, `kernels` are the two Triton kernels (the only module whose import imports
Triton), `launch` launches them, `occupancy` holds the devices' limits, and `report` compiles the
kernels for each device ahead of time. The backend is `moebench.experts.triton`.
"""
