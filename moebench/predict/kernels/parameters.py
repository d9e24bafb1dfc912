"""Parameters of a grouped-matmul kernel on one device, each with its prior and its unit."""

from dataclasses import dataclass

from moebench.predict.parameters import metadata, parameter


@dataclass(frozen=True)
class Parameters:
    """Fitted numbers of one kernel on one device; none names a device or a shape."""

    launch: float = parameter(8e-6, 0.6, "s", scope="framework", paced=True)
    """Everything of a call that does not grow: kernel starts, top-k, the graph's own gaps."""
    sort: float = parameter(3e-6, 0.6, "s", scope="framework", paced=True)
    """Sorting the token copies by expert, where the framework can skip it."""
    parallel: float = parameter(2e-6, 1.0, "s", scope="framework", paced=True)
    """Extra kernels under expert parallelism: mapping ids, clearing outputs."""
    copy: float = parameter(2e-10, 1.2, "s", scope="framework", paced=True)
    """Per token copy: sorting and permuting."""
    expert: float = parameter(5e-9, 1.2, "s", scope="framework", paced=True)
    """Per expert of the rank: histogram and prefix sum."""
    quantise: float = parameter(70.0, 1.0, "clock", scope="framework")
    """Clocks of one SM for `SCALE_GROUP` activations that become fp8 with a scale of their own: a
    warp reduces and rescales them, which takes longer than moving their bytes."""
    activation_traffic: float = parameter(1.3, 0.4, "", scope="framework")
    """Bytes that the elementwise kernels and activations really move over the minimum."""
    top1_launch: float = parameter(3e-6, 0.7, "s", scope="framework", paced=True)
    """Extra kernels of top-1 models, which scale the input by the router weight first."""
    top1_passes: float = parameter(1.0, 0.8, "", scope="framework")
    """Extra passes over the input in those kernels."""
    gemm: float = parameter(1.5e-6, 0.5, "s", paced=True)
    """Start of one grouped matmul: descriptors, first loads, last stores."""
    block: float = parameter(1.5e-6, 0.6, "s", paced=True)
    """Start and end of one thread block."""
    tensor_memory: float = parameter(1e-6, 0.7, "s")
    """Further time of a block whose accumulator lives in tensor memory (compute capability 10)."""
    round_trip: float = parameter(0.75e-6, 0.4, "s")
    """One load from DRAM, start to use."""
    l2_round_trip: float = parameter(0.1, 0.6, "", ceiling=1.0)
    """A load from L2 over one from DRAM, beyond what the step itself hides."""
    bandwidth: float = parameter(0.9, 0.12, "", ceiling=1.0)
    """Share of the datasheet's DRAM bandwidth that streaming weights reaches."""
    narrow_rows: float = parameter(0.7, 0.3, "", ceiling=1.0)
    """Further share left when a step reads only 64 bytes of each row (block_k of 32)."""
    tensor: float = parameter(0.7, 0.25, "", ceiling=1.0)
    """Share of the datasheet's tensor peak that full tiles reach."""
    fill_rows: float = parameter(8.0, 0.8, "rows")
    """Rows by which each tile costs more than its height: short tiles feed tensor cores badly."""
    l2_port: float = parameter(48.0, 0.5, "B/clock")
    """L2 to one SM."""
    step: float = parameter(100.0, 0.8, "clock")
    """Instructions of one inner step that nothing hides."""
    misaligned: float = parameter(50.0, 0.4, "clock")
    """One element-wise load of a thread, where a row stride forbids vector loads."""
    overlap: float = parameter(3.0, 0.25, "")
    """Exponent p of the norm: 1 adds the four times, infinity takes the largest."""
    waves: float = parameter(0.3, 0.6, "", ceiling=1.0)
    """How much of the last wave's idle SMs is felt."""
    reread: float = parameter(0.3, 0.8, "")
    """Share of re-reads of the input, once a column of tiles, that reach DRAM."""
    retention: float = parameter(0.65, 0.4, "")
    """Share of L2 that replayed weights can occupy (warm only)."""
    weight_retention: float = parameter(0.7, 0.5, "")
    """Share of L2 that one expert's matrix may fill and still be shared by its row tiles."""


METADATA = metadata(Parameters)
"""Prior, unit and ceiling of each: `scope="framework"` belongs to the framework around the matmul
kernel; `paced` ones are chains of instructions, which take as many clocks on any device."""
PARAMETERS = tuple(METADATA)
