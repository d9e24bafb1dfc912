"""Operations around the expert kernels: attention and communication, with fitted parameters."""
