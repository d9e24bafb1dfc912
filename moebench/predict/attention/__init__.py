"""Attention kernels: decode and prefill with keys shared by groups of query heads."""
