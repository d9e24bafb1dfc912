"""The terminal table as a whole: a change of its format shows here."""

from pathlib import Path

from runs import write_run

from moebench.records.run import load_run
from moebench.report.cases import run_table
from moebench.report.table import render_text

TABLE = """\
           mean  distinct  GFLOP per                   predicted                                        predicted    FLOPs  energy per      peak
router        k   experts      token          latency    latency    error             speedup  verdict    speedup  promise       token    memory

MoE layer · decode b1 (1 token a step, context 1024)
top-k      2.00      2.00      0.705  60.9 ms ±2.6 %¹    54.7 ms  −10.1 %            baseline                                       –²  2.63 GiB
top-k k=1  1.00      1.00      0.352  31.5 ms ±3.2 %¹    27.6 ms  −12.3 %  1.93× [1.91, 1.94]  faster       1.98×    2.00×          –²  2.63 GiB
ada-k      1.40      1.40      0.493  45.2 ms ±3.9 %¹    38.7 ms  −14.5 %  1.34× [1.32, 1.38]  faster       1.42×    1.43×          –²  2.63 GiB
adamoe        –         –          –               –³    45.8 ms        –                   –                   –        –           –         –
rmoe       2.00      2.00     0.705⁴  63.0 ms ±3.2 %¹    55.6 ms  −11.7 %  0.97× [0.96, 0.98]  slower       0.98×    1.00×          –²  2.63 GiB

MoE layer · train 1x512 (512 tokens a step)
top-k      2.00      8.00       2.11    1.95 s ±3.2 %    1.98 s⁵   +1.4 %            baseline                                       –²        –⁶
top-k k=1  1.00      8.00       1.06    996 ms ±3.6 %    991 ms⁵   −0.5 %  1.95× [1.94, 1.97]  faster       1.99×    2.00×          –²        –⁶
ada-k      1.40      8.00       1.48    1.35 s ±3.1 %    1.39 s⁵   +2.9 %  1.45× [1.44, 1.46]  faster       1.42×    1.43×          –²        –⁶
adamoe        –         –          –               –³    1.64 s⁵        –                   –                   –        –           –         –
rmoe       2.00      8.00      2.11⁴    1.89 s ±2.9 %    1.98 s⁵   +5.0 %  1.03× [1.02, 1.04]  faster       1.00×    1.00×          –²        –⁶

decoder layer · decode b1 (1 token a step, context 1024)
top-k      2.00      2.00      0.789  70.1 ms ±2.5 %¹    61.5 ms  −12.2 %            baseline                                       –²  2.63 GiB
top-k k=1  1.00      1.00      0.436  40.1 ms ±3.1 %¹    34.4 ms  −14.1 %  1.74× [1.73, 1.76]  faster       1.79×    1.81×          –²  2.63 GiB
ada-k      1.40      1.40      0.577  55.9 ms ±2.3 %¹    45.5 ms  −18.6 %  1.25× [1.24, 1.28]  faster       1.35×    1.37×          –²  2.63 GiB
adamoe        –         –          –               –³    52.6 ms        –                   –                   –        –           –         –
rmoe       2.00      2.00     0.789⁴  73.1 ms ±2.4 %¹    62.4 ms  −14.6 %  0.96× [0.95, 0.97]  slower       0.99×    1.00×          –²  2.63 GiB

decoder layer · train 1x512 (512 tokens a step)
top-k      2.00      8.00       2.37    2.36 s ±3.6 %    2.23 s⁵   −5.5 %            baseline                                       –²        –⁶
top-k k=1  1.00      8.00       1.31    1.32 s ±3.5 %    1.25 s⁵   −5.1 %  1.80× [1.77, 1.81]  faster       1.79×    1.81×          –²        –⁶
ada-k      1.40      8.00       1.73    1.74 s ±3.8 %    1.64 s⁵   −5.4 %  1.36× [1.34, 1.37]  faster       1.36×    1.37×          –²        –⁶
adamoe        –         –          –               –³    1.90 s⁵        –                   –                   –        –           –         –
rmoe       2.00      8.00      2.37⁴    2.25 s ±4.2 %    2.24 s⁵   −0.6 %  1.05× [1.03, 1.06]  faster       1.00×    1.00×          –²        –⁶

¹ warm-cache: weights of 2.8 GB, cache 32 MB; the first step is warmer; remedy: --cold
² no energy: this virtual machine exposes no energy counter
³ out-of-memory: needs 31 GiB
⁴ incomplete-count: a counter cannot count aten::gru; the number is the closed form from the observed routing
⁵ coarse-price: kernel below the grid; the price is extrapolated; remedy: recalibrate
⁶ no peak memory: the child ran out of time
"""  # noqa: E501


def test_the_terminal_table_of_a_small_run(tmp_path: Path) -> None:
    workloads = (("decode", 1, 1, 1024), ("train", 1, 512, 0))
    run = load_run(write_run(tmp_path, workloads, failing="adamoe"))
    assert render_text(run_table(run)) + "\n" == TABLE
