"""What adaptive routing in Mixture-of-Experts models is worth, measured and predicted."""

from moebench.version import VERSION as __version__

__all__ = ["__version__"]
