"""Tables of communication: which rows are calls of what, and that every well-formed row is one."""

from pathlib import Path

import numpy as np
import pytest

from moebench.calibrate.cells import read_cells
from moebench.calibrate.operations.kinds import kind_of
from moebench.calibrate.operations.table import OperationTable, groups_of, read_operations
from moebench.predict.operations.price import priced

COLLECTIVES = """system,op,library,version,mode,ranks,bytes,latency_us
h100_sxm,all_reduce,nccl,2.27.3,eager,8,1048576,25.4
h200_sxm,all_reduce,vllm,0.24.0,graph,4,65536,5
l40s,alltoall,nccl,9.9,eager,2048,1073741824,90000
a100_sxm,reduce_scatter,somelib,1.0,graph,8,512,15
gb300,all_gather,nccl,2.29.2,graph,1,512,5
"""
DEEPEP = (
    "system,framework,version,backend,phase,dtype,nodes,ranks,hidden,experts,topk,sms,tokens,"
    """latency_us
h100_sxm,sglang,0.5.12,deepep_ll,dispatch,fp8,1,8,7168,256,8,0,128,27
h100_sxm,sglang,0.5.12,deepep_ll,combine,bf16,8,64,7168,256,8,0,128,200
b300_sxm,newer,1.0,pplx,combine,mxfp8,500,4000,7168,256,8,32,4096,900
gb200,trtllm,1.3.0rc11,trtllm_deepep_ht,combine,nvfp4,1,4,4096,256,6,0,16,70
"""
)
PAIRS = (
    "system,framework,version,backend,phase,dtype,nodes,ranks,hidden,experts,sms,tokens,"
    """topk_low,topk_high,latency_us_low,latency_us_high
h100_sxm,sglang,0.5.12,deepep_ll,combine,bf16,1,8,4096,256,0,1024,6,8,229,292
"""
)
NVLINK = (
    "system,framework,version,kernel_source,phase,dtype,ranks,hidden,experts,topk,tokens,"
    """latency_us
gb200,trtllm,1.3.0rc10,NVLinkTwoSided,prepare,nvfp4,64,7168,256,8,128,16
gb300,trtllm,1.3.0rc10,NVLinkTwoSided,combine_low_precision,nvfp4,8,7168,256,8,128,33
h100_sxm,trtllm,9.0,Unheard,dispatch,bf16,96,7168,256,8,128,60
"""
)


def table(folder: Path, text: str) -> OperationTable:
    path = folder / "table.csv"
    path.write_text(text)
    cells = read_cells(path)
    kind = kind_of(cells)
    assert kind is not None
    found = read_operations(cells, kind)
    assert found.problems == ()
    return found


@pytest.mark.parametrize(
    ("text", "name", "operations"),
    [
        (
            COLLECTIVES,
            "collectives",
            ["all-reduce", "custom-all-reduce", "all-to-all", "reduce-scatter", "all-gather"],
        ),
        (DEEPEP, "deepep", ["low-latency-exchange"] * 2 + ["normal-exchange"] * 2),
        (PAIRS, "deepep-pairs", ["low-latency-exchange"]),
        (NVLINK, "nvlink-alltoall", ["nvlink-exchange"] * 3),
    ],
    ids=["collectives", "deepep", "pairs", "nvlink"],
)
def test_every_well_formed_row_is_priced(
    tmp_path: Path, text: str, name: str, operations: list[str]
) -> None:
    found = table(tmp_path, text)
    assert found.kind.name == name
    groups, skipped = groups_of(found)
    assert skipped == {}
    names = {int(row): rows.operation.name for rows in groups for row in rows.rows}
    assert [names[row] for row in range(len(found))] == operations
    for rows in groups:
        seconds = priced(rows.operation, rows.software, rows.hardware).seconds(rows.calls)
        assert np.isfinite(seconds).all() and (seconds > 0).all()


def test_the_larger_k_of_a_pair_comes_first(tmp_path: Path) -> None:
    pairs = table(tmp_path, PAIRS)
    (high,), (low,) = (groups_of(pairs, member)[0] for member in (0, 1))
    assert (high.calls.top_k[0], low.calls.top_k[0]) == (8, 6)
    assert (high.seconds[0], low.seconds[0]) == pytest.approx((292e-6, 229e-6))
    assert pairs.measured() == pytest.approx(292 / 229)


def test_a_combine_returns_bfloat16_whatever_the_weights_are(tmp_path: Path) -> None:
    groups, _ = groups_of(table(tmp_path, DEEPEP))
    widths = {rows.software.variant: float(rows.calls.width[0]) for rows in groups}
    assert widths["deepep_ll dispatch"] == 1 + 1 / 32
    assert widths["deepep_ll combine"] == widths["trtllm_deepep_ht combine fp4"] == 2


def test_a_congested_network_is_priced_and_not_fitted(tmp_path: Path) -> None:
    lines = DEEPEP.splitlines()
    congested = "h100_sxm,sglang,0.5.6,deepep_normal,dispatch,fp8,8,64,7168,256,8,20,4096,6000"
    groups, _ = groups_of(table(tmp_path, "\n".join([*lines, congested])))
    unfitted = {rows.software.variant for rows in groups if not rows.usable.any()}
    assert unfitted == {"deepep_normal dispatch", "pplx combine"}
