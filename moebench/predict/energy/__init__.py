"""Power of a step and joules per token, by coefficients fitted to measured deployments."""
