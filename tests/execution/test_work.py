"""What the process that runs the backends says when it cannot."""

import pytest

from moebench.execution import work
from moebench.execution.plan import CellPlan


def test_a_copy_of_the_weights_that_does_not_fit_is_not_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = work.Bench("cpu", 1)
    plan = CellPlan("Mixtral / 64", "mixtral-8x7b", 64, "forward", "float32", 2, ("fixed",))
    bench.open(plan, 1, ())
    monkeypatch.setattr(work, "available_memory", lambda device: 1024.0)
    bench.time("grouped", "fixed", "forward", 0, 1)
    with pytest.raises(MemoryError, match="copy of the weights takes 1.31 MiB, 1.00 KiB are free"):
        bench.time("packed", "fixed", "forward", 0, 1)
    assert bench.weights is not None
    assert bench.weights.laid_out_bytes == 0
    monkeypatch.setattr(work, "available_memory", lambda device: 1e9)
    bench.time("packed", "fixed", "forward", 0, 1)
    monkeypatch.setattr(work, "available_memory", lambda device: 0.0)  # it is there already
    bench.time("packed", "fixed", "forward", 0, 1)
