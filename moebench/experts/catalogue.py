"""Catalogue of expert executions: what they can do and cost; `backends.py` finds their code."""

from dataclasses import dataclass, replace

from moebench.spec.case import Phase
from moebench.spec.ops import ExpertCalls, Launches

WITH_FP64 = ("float64", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class ExpertBackend(ExpertCalls):
    """An expert execution: how it calls its kernels, what it takes, and what it needs."""

    module: str = ""
    """File in moebench/experts; the backend's name if left out."""
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16")
    """Types that it computes in; a processor may lack some."""
    has_gradients: bool = True
    is_gated_only: bool = False
    """Whether experts of two matrices are beyond it."""
    takes_biases: bool = False
    """Whether it takes experts with biases and gpt-oss's clamped activation."""
    takes_slots: bool = False
    """Whether it sorts the router's dense slots itself, if `Routing.slots` are there."""
    owns_process: bool = False
    """Whether it brings a matmul library that must not share a process with oneDNN's."""
    hides_flops: bool = False
    """Whether its matmuls are operations that FLOP counters do not know."""
    is_capturable: bool = False
    """Whether a CUDA graph can hold it: it takes a bounded routing, never waits for the device."""
    takes_residual: bool = False
    """Whether it adds its outputs to the residual stream in its last launch."""
    fuses_routing: bool = False
    """Whether it runs where our kernel routes in inference: on a GPU with Triton."""
    stand_in: str | None = None
    """The execution that runs where it cannot run, and in its place with gradients."""
    trains_itself: bool = False
    """Whether it keeps its place with gradients although it has a stand-in.

    Its weights are then the parameters, whatever layout it has otherwise.
    """


EXPERT_BACKENDS = {
    backend.name: backend
    for backend in (
        ExpertBackend(
            "loop",
            Launches(matmul=(0, 1), dispatch=(0, 2), combine=(1, 6), waits=(0, 1)),
            dtypes=WITH_FP64,
            takes_biases=True,
        ),
        ExpertBackend(
            "grouped",
            Launches(matmul=(0, 1), dispatch=(1, 0), combine=(8, 0), waits=(1, 0)),
            dtypes=WITH_FP64,
            takes_biases=True,
        ),
        # Experts of few rows are gathered, activated and joined in one operation each; the four
        # launches more of an expert of many rows do not count beside its matmuls.
        ExpertBackend(
            "packed",
            Launches(matmul=(0, 1), dispatch=(6, 0), combine=(7, 0), activation=0),
            layout="packed",
            least_rows=4,
            hides_flops=True,
            stand_in="grouped",
        ),
        # One call for both matmuls and all else, and one that asks for the output's memory.
        ExpertBackend(
            "avx512",
            Launches(matmul=(0.5, 0), dispatch=(0, 0), combine=(1, 0), activation=0),
            layout="avx512",
            dtypes=("float32", "bfloat16"),
            takes_slots=True,
            hides_flops=True,
            stand_in="packed",
            trains_itself=True,
        ),
        # Kernels of others, with what the adapter does; a fused kernel is one call for everything.
        # Who takes slots waits for their number; `eager` waits five times for a touched expert.
        ExpertBackend(
            "transformers-eager",
            Launches(matmul=(0, 1), dispatch=(26, 0), combine=(0, 10), waits=(4, 5)),
            module="transformers",
            dtypes=WITH_FP64,
            is_gated_only=True,
            takes_slots=True,
            hides_flops=True,
        ),
        ExpertBackend(
            "transformers-grouped-mm",
            Launches(matmul=(1, 0), dispatch=(20, 0), combine=(15, 0), waits=(1, 0)),
            module="transformers",
            is_gated_only=True,
            takes_slots=True,
            hides_flops=True,
        ),
        ExpertBackend(
            "vllm",
            Launches(matmul=(0.25, 0), dispatch=(18, 0), combine=(0, 0), waits=(1, 0)),
            has_gradients=False,
            is_gated_only=True,
            takes_slots=True,
            owns_process=True,
            hides_flops=True,
        ),
        # Ends, their type, a clamp and the gather come before, twelve operations combine.
        ExpertBackend(
            "torch-grouped-mm",
            Launches(matmul=(1, 0), dispatch=(4, 0), combine=(12, 0)),
            module="torch_grouped_mm",
            dtypes=("float32", "bfloat16"),
            hides_flops=True,
            is_capturable=True,
            stand_in="grouped",
            trains_itself=True,
        ),
        ExpertBackend(
            "deepgemm",
            Launches(matmul=(1, 0), dispatch=(43, 0), combine=(13, 0)),
            dtypes=("bfloat16",),
            has_gradients=False,
            hides_flops=True,
            is_capturable=True,
        ),
        # Launches of the next three are counted in the adapters' text: none could be run.
        ExpertBackend(
            "flashinfer",
            Launches(matmul=(0.25, 0), dispatch=(18, 0), combine=(0, 0), waits=(1, 0)),
            dtypes=("bfloat16", "float16"),
            has_gradients=False,
            is_gated_only=True,
            takes_slots=True,
            hides_flops=True,
        ),
        ExpertBackend(
            "scattermoe", Launches(matmul=(1, 0), dispatch=(3, 0), combine=(7, 0)), hides_flops=True
        ),
        ExpertBackend(
            "sonicmoe",
            Launches(matmul=(0.25, 0), dispatch=(7, 0), combine=(0, 0)),
            dtypes=("bfloat16", "float16"),
            is_gated_only=True,
            hides_flops=True,
        ),
        # Of a routing with row tiles and places of slots, as a fused router gives it.
        ExpertBackend(
            "triton",
            Launches(matmul=(1, 0), dispatch=(0, 0), combine=(1, 0), activation=0),
            is_capturable=True,
            takes_biases=True,
            takes_residual=True,
            stand_in="grouped",
            trains_itself=True,
            fuses_routing=True,
        ),
        # The same launches; their weights are rounded, so nothing stands in for them.
        *(
            ExpertBackend(
                f"triton-{short}",
                Launches(matmul=(1, 0), dispatch=(0, 0), combine=(1, 0), activation=0),
                module=f"triton_{short}",
                dtypes=dtypes,
                weight_type=weight_type,
                has_gradients=False,
                takes_biases=True,
                hides_flops=True,
                is_capturable=True,
                takes_residual=True,
                fuses_routing=True,
            )
            for short, weight_type, dtypes in (
                ("fp8", "float8", ("bfloat16", "float16")),
                ("mxfp4", "mxfp4", ("bfloat16",)),
            )
        ),
    )
}


def executing(name: str, phase: Phase) -> ExpertBackend:
    """The execution that runs in a phase where one is asked for by name."""
    backend = EXPERT_BACKENDS[name]
    if phase != "train":
        return backend
    while backend.stand_in is not None and not backend.trains_itself:
        backend = EXPERT_BACKENDS[backend.stand_in]
    return replace(backend, layout="plain")
