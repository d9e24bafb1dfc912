"""Our own GPU kernels, and their properties that need no GPU.

`tiles` cuts the work, `kernels` and `combine_kernel` are the three Triton kernels, which share
`kernel_parts`, and `launch` launches them; `training_tiles`, `training_kernels` and `training` are
the same for training, `quantised_tiles`, `quantised_kernels` and `quantised` for packed weights.
Only the modules of kernels import Triton when they are imported. Without a GPU: `variants` lists
every kernel with its tiles, `compilation` compiles them ahead of time, `occupancy` holds the
devices' limits, and `report` prints all that beside vLLM's kernel (`vllm_kernel`, `comparison`).
The backends are `moebench.experts.triton`, `triton_fp8` and `triton_mxfp4`.
"""
