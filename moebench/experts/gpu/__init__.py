"""Our own GPU kernels, and their properties that need no GPU.

`tiles` cuts the work, `kernels` are the three Triton kernels (the only module whose import imports
Triton), `launch` launches them. Without a GPU: `variants` lists every kernel with its tiles,
`compilation` compiles them ahead of time, `occupancy` holds the devices' limits, and `report`
prints all that beside vLLM's kernel (`vllm_kernel`, `comparison`). The backend is
`moebench.experts.triton`.
"""
