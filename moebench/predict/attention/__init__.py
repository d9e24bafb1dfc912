"""Attention kernels and blocks: keys shared by groups of query heads, or compressed (MLA)."""
