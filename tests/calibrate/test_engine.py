"""The fit of engines: it finds the host time that made the points, and what it leaves out."""

import dataclasses

import numpy as np
import pytest
from published_rows import ROW

from moebench.calibrate.published.engine import Fit, bounds_of, fit_engines, log_error
from moebench.calibrate.published.loops import Loop, loops_of, usable
from moebench.calibrate.published.tables import Point
from moebench.predict.serving.engine import CURRENT, EngineParameters


def points(metrics: tuple[str, ...] = ("tpot_median", "ttft_median")) -> list[Point]:
    found = []
    for model in ("mixtral-8x7b", "qwen3-30b-a3b", "llama-3.1-70b"):
        for size in (1, 8, 64):
            for metric in metrics:
                own = {"model": model, "metric": metric, "unit": "ms", "dtype": "bfloat16"}
                values = {"hardware": "h100-sxm", "framework": "vllm 0.11", "note": ""} | own
                stated = {name: ROW.get(name, "") for name in ("id", "source", "kv_dtype", "phase")}
                numbers = {"row": len(found) + 1, "num_gpus": 4, "tp": 4, "ep": 1, "value": 1.0}
                lengths = {"batch": size, "input_len": 1024.0, "output_len": 256.0}
                found.append(Point(**values, **stated, **numbers, **lengths))  # type: ignore[arg-type]
    return found


def measured(parameters: EngineParameters) -> list[Loop]:
    """Loops as an engine with these parameters would have served them."""
    truth = Fit({("vllm", CURRENT): parameters}, {}, parameters)
    return [
        dataclasses.replace(loop, seconds=np.asarray(truth.predicted(loop)))
        for loop in loops_of(points())
    ]


@pytest.mark.parametrize("step", [2e-3, 6e-3])
def test_the_host_time_of_a_step_is_found(step: float) -> None:
    loops = measured(dataclasses.replace(EngineParameters(), step=step))
    fit = fit_engines(usable(loops))
    assert fit.engines["vllm", CURRENT].step == pytest.approx(step, rel=0.25)
    assert max(np.abs(log_error(fit, loop)).max() for loop in loops) < 0.05


def test_a_time_per_token_faster_than_the_weights_is_left_out() -> None:
    loops = measured(EngineParameters())
    drafted = dataclasses.replace(
        loops[0], seconds=np.where(loops[0].is_first_token, loops[0].seconds, 1e-4)
    )
    kept = usable([drafted, *loops[1:]])
    assert len(kept) == len(loops) - 1, "its times to first token go with it"
    assert sum(len(loop.seconds) for loop in usable(loops)) == len(points())


def test_bounds_are_quantiles_of_measured_over_predicted() -> None:
    loops = measured(EngineParameters())
    errors = [(loop, np.full(len(loop.seconds), -0.2)) for loop in loops]
    assert bounds_of(errors) == {"tpot": (0.2, 0.2), "ttft": (0.2, 0.2)}


def test_static_batches_of_a_setup_are_fitted_together() -> None:
    (one,) = {len(loop.seconds) for loop in loops_of(points(("e2e_latency", "prefill_time")))}
    assert one == 6
