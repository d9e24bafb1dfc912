"""An imitated GPU: the whole of moebench on "cuda", computed on the processor, with made-up times.

    with imitated_gpu(folder, boards=2): ...                          in this process
    python -m moebench.doctor.imitation [--boards N] MODULE ARGUMENTS   in one of its own

It shows that nothing breaks: devices, streams, graphs, memory and joules go through the code that a
GPU would use. It shows nothing about speed or numbers of a GPU; its records say "simulated".
"""
