"""Our own GPU kernels for routers: from scores to a routing sorted by expert, in one launch.

`rules` says how many experts a token keeps, `kernels` choose, sort and scatter (the two modules
whose import imports Triton), `form` is what a router tells them, and `launch` launches them.
"""
