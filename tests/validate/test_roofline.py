"""The check of the model of a kernel against measured layers."""

from pathlib import Path

import pytest

from moebench.validate.roofline import document

HEADER = (
    "system,framework,version,kernel_source,num_tokens,hidden_size,inter_size,topk,num_experts,"
    "moe_tp_size,moe_ep_size,distribution,latency_us"
)


def table(tmp_path: Path, rows: str) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text(f"{HEADER}\n{rows}\n", encoding="utf-8")
    return path


def test_a_row_is_scored_by_its_share_of_the_roofline(tmp_path: Path) -> None:
    """64 tokens of 8 experts read 2.82 GB: 841 us at 3.35 TB/s, half of what was measured."""
    row = "h100_sxm,vllm,0.24.0,triton,64,4096,14336,2,8,1,1,balanced,1682.8"
    text = document(table(tmp_path, row))
    (line,) = [line for line in text.splitlines() if line.startswith("| h100_sxm")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:5] == ["h100_sxm", "0.24.0", "17 to 256", "1", "50 %"]
    predicted = float(cells[5].removesuffix(" %")) / 100
    assert float(cells[6].removesuffix(" %")) / 100 == pytest.approx(0.5 / predicted - 1, abs=0.02)


@pytest.mark.parametrize(
    "row",
    [
        "h100_sxm,vllm,0.24.0,triton,1,2048,768,8,128,1,1,balanced,40",
        "h100_sxm,sglang,0.5.10,sglang_fused_moe_triton,64,4096,14336,2,8,1,1,balanced,1682",
        "h100_sxm,vllm,0.24.0,triton,64,4096,14336,2,8,1,8,balanced,300",
    ],
)
def test_rows_of_other_kernels_in_l2_or_parallel_are_not_scored(tmp_path: Path, row: str) -> None:
    with pytest.raises(ValueError, match="no row"):
        document(table(tmp_path, row))
