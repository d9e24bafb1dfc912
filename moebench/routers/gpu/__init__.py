"""Our own GPU kernels for routers: from scores to a routing sorted by expert, in one launch.

`kernel_rules` say how many experts a token keeps, and `kernels` choose, sort and scatter: the two
modules whose import imports Triton. `form` is what a router tells them, `launch` launches them.
"""
