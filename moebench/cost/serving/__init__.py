"""Whole steps of a deployment: what stands around the experts, communication, memory, spread."""
