"""Papers' claims about their routers, checked by counted FLOPs and predicted speedups."""
