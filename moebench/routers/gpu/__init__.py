"""Our own GPU kernels for routers: from scores to a routing sorted by expert, in one launch.

`kernels` choose, with the rules of `kernel_rules`, and `kernel_order` sorts: the modules whose
import imports Triton. `form` is what a router tells them, `launch` launches them, and `route` makes
routings of what they write.
"""
