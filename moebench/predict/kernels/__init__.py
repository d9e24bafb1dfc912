"""One MoE layer on a GPU, by the kernel that runs it: fitted to measured rows, with intervals."""
