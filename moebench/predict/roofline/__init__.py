"""The share of the roofline that a grouped-matmul kernel can reach, from what the compiler says."""
