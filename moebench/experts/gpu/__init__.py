"""Our own GPU kernels, and what can be known about them without a GPU.

`tiles` says how the work is cut, `kernels` are the two Triton kernels (only this module imports
Triton when it is imported), `occupancy` holds the devices' limits, and `report` compiles the
kernels for each of them ahead of time. The backend that launches them is
`moebench.experts.triton`.
"""
