"""Which expert executions there are, and how each calls its kernels."""

from moebench.spec.case import Phase
from moebench.spec.ops import ExpertBackend

EXPERT_BACKENDS = {
    backend.name: backend
    for backend in (
        ExpertBackend("loop", 0, 1, 0, 2, 1, 6),
        ExpertBackend("grouped", 0, 1, 1, 0, 8, 0),
        # Gathers, activates and joins experts of few rows together; those of many, one by one, for
        # which four launches more do not count.
        ExpertBackend(
            *("packed", 0, 1, 6, 0, 7, 0),
            activation_launches=0,
            layout="packed",
            least_rows=4,
            stand_in="grouped",
        ),
        # One call for the first matmuls with the activation, one for the second, and one to combine
        # into memory that it asks for.
        ExpertBackend(
            "avx512", 1, 0, 0, 0, 2, 0, activation_launches=0, layout="avx512", stand_in="packed"
        ),
        # Kernels of others, with what the adapter does; a fused one is a call in all.
        ExpertBackend("transformers-eager", 0, 1, 26, 0, 0, 10),
        ExpertBackend("transformers-grouped-mm", 1, 0, 20, 0, 15, 0),
        ExpertBackend("vllm", 0.25, 0, 18, 0, 0, 0),
        # Counted in the adapters' text, since neither could be run.
        ExpertBackend("scattermoe", 1, 0, 3, 0, 7, 0),
        ExpertBackend("sonicmoe", 0.25, 0, 7, 0, 0, 0),
        # Combined in fp32: a launch to fill with zeros, and one to go back.
        ExpertBackend("triton", 1, 0, 0, 0, 2, 0, activation_launches=0, is_capturable=True),
    )
}


def executing(name: str, phase: Phase) -> ExpertBackend:
    """The execution that runs in a phase where one is asked for by name."""
    backend = EXPERT_BACKENDS[name]
    while phase == "train" and backend.stand_in is not None:
        backend = EXPERT_BACKENDS[backend.stand_in]
    return backend
