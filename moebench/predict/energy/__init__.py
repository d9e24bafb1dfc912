"""Power of a step and joules a token, fitted to measured deployments."""
