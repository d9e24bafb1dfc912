"""Predictions of deployments: serving kernels, a decoder around the experts, a model, its GPUs."""
