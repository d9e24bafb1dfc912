"""Laws of a served load: Little's law, what more requests, tokens, memory or host time bring."""

from dataclasses import replace

import numpy as np
import pytest

from moebench.predict.serving.deployment import Deployment
from moebench.predict.serving.engine import (
    CURRENT,
    EARLY,
    EngineParameters,
    WeightFactors,
    compute_share,
    engine,
    era,
    shipped_engines,
)
from moebench.predict.serving.load import Load, Served, ServedPrice, served
from moebench.predict.serving.no_router import baseline
from moebench.predict.serving.parallelism import Parallelism
from moebench.predict.serving.prices import kernel_prices
from moebench.spec.hardware import load_hardware
from moebench.spec.model import load_model

H100, B200 = load_hardware("h100-sxm"), load_hardware("b200-sxm")
LLAMA = Deployment(
    load_model("llama-3.1-70b"), B200, level="model", dtype="fp8", parallel=Parallelism(4)
)
DEEP = Deployment(
    load_model("deepseek-v3"), B200, level="model", engine="sglang", parallel=Parallelism(8)
)


def loop(concurrency: object, prompt: object, output: object) -> Load:
    parts = np.broadcast_arrays(concurrency, prompt, output)
    return Load(*(np.atleast_1d(part).astype(np.int64) for part in parts))


def price(d: Deployment, load: Load, chunk: int | None = None) -> ServedPrice:
    router = baseline(d.model)
    return served(d, kernel_prices(d), (router, d.routed_by(router)), load, chunk)


def times(d: Deployment, *load: object) -> Served:
    return price(d, loop(*load)).served


@pytest.mark.parametrize("d", [LLAMA, DEEP])
def test_throughput_times_latency_is_the_concurrency(d: Deployment) -> None:
    found = times(d, [1, 8, 64, 512], 1024, 1024)
    in_flight = found.throughput / found.load.output * found.request
    assert in_flight == pytest.approx(found.load.concurrency)


@pytest.mark.parametrize("d", [LLAMA, DEEP])
def test_a_single_request_has_an_idle_server(d: Deployment) -> None:
    """Its time to first token does not depend on its output, nor on the benchmark's start."""
    found = times(d, 1, 1024, [1, 64, 1024, 8192])
    assert found.first_token == pytest.approx(np.full(4, found.first_token[0]))
    assert found.first_token == pytest.approx(found.steady_first_token)
    assert found.time_per_token == pytest.approx(found.step), "no other prefills"


@pytest.mark.parametrize("d", [LLAMA, DEEP])
def test_more_requests_are_slower_each_and_faster_together(d: Deployment) -> None:
    found = times(d, [1, 4, 16, 64, 256], 1024, 1024)
    assert (np.diff(found.time_per_token) > 0).all() and (np.diff(found.first_token) > 0).all()
    assert (np.diff(found.throughput) > 0).all()


def test_longer_prompts_hold_up_first_tokens_and_longer_outputs_spread_prefills() -> None:
    prompts, outputs = (
        times(LLAMA, 32, [512, 2048, 8192], 1024),
        times(LLAMA, 32, 1024, [128, 1024]),
    )
    assert (np.diff(prompts.first_token) > 0).all() and (np.diff(prompts.time_per_token) > 0).all()
    stalls = outputs.time_per_token - outputs.step
    assert stalls[0] == pytest.approx(8 * stalls[1], rel=0.1)


def test_what_does_not_fit_into_memory_waits() -> None:
    """Llama 3.1 70B in fp8 leaves half of a B200 to caches of 0.33 MB a token."""
    one = replace(LLAMA, parallel=Parallelism(1))
    found = times(one, [16, 128], 8192, 1024)
    assert found.running[0] == 16 and 20 < found.running[1] < 64
    assert found.first_token[1] > 10 * found.first_token[0]
    assert found.time_per_token[1] < 4 * found.time_per_token[0], "those that run are no more"
    narrow = times(replace(one, kv_dtype="fp8"), 128, 8192, 1024)
    assert narrow.running[0] == pytest.approx(2 * found.running[1], abs=1)


def test_host_time_as_given_is_in_every_step() -> None:
    load = loop([1, 16], 1024, 1024)
    none, much = (
        price(replace(LLAMA, engine_overhead=seconds), load).served for seconds in (0.0, 2e-3)
    )
    assert much.step - none.step == pytest.approx([2e-3, 2e-3])
    assert (much.time_per_token > none.time_per_token).all()
    assert (price(LLAMA, load).served.step > none.step).all(), "the engine's own is more than none"


def test_chunks_of_a_prompt_take_their_time_to_first_token() -> None:
    load = loop(8, 8192, 1024)
    whole, chunked = (price(LLAMA, load, chunk).served for chunk in (8192, 1024))
    assert chunked.first_token[0] > whole.first_token[0]
    assert chunked.time_per_token[0] == pytest.approx(whole.time_per_token[0], rel=0.3)


def test_the_interval_holds_the_prediction() -> None:
    found = price(DEEP, loop([1, 64], 1024, 1024))
    for name, values in (("tpot", found.served.time_per_token), ("ttft", found.served.first_token)):
        low, high = found.interval(name, values)  # type: ignore[arg-type]
        assert (low < values).all() and (values < high).all()


@pytest.mark.parametrize(
    ("name", "version", "expected"),
    [
        ("vllm", "0.3", EARLY), ("vllm", "0.11.2", CURRENT), ("vllm", None, CURRENT),
        ("trtllm", "0.9", EARLY), ("trtllm", "1.2.0rc6", CURRENT), ("unheard-of", "0.1", CURRENT),
    ],
)  # fmt: skip
def test_an_engine_is_of_the_era_of_its_release(
    name: str, version: str | None, expected: str
) -> None:
    assert era(name, version) == expected


def test_hosts_of_2024_took_5_to_7_ms_a_step_and_later_ones_less() -> None:
    early = engine("vllm", "0.4", "bfloat16", None).parameters.step
    assert 4e-3 < early < 8e-3
    for name in ("vllm", "sglang", "trtllm", "other"):
        assert 0 < engine(name, None, "float8", "float8").parameters.step < 3e-3
    assert engine("other", None, "bfloat16", None).origin.startswith("no published point")


def test_shipped_parameters_are_positive_and_16_bits_need_no_factor() -> None:
    for fit in shipped_engines().engine:
        assert min(vars(fit.parameters).values()) > 0 and fit.points > 0
    plain = engine("vllm", None, "bfloat16", "float16").factors
    assert all(value == 1 for one in plain for value in vars(one).values())
    assert vars(EngineParameters()).keys() and min(vars(WeightFactors()).values()) > 0


def test_arithmetic_takes_over_where_it_takes_as_long_as_the_weights() -> None:
    rows = np.array([1.0, 100.0, 300.0, 1e5])
    share = compute_share(rows, 300.0)
    assert (np.diff(share) > 0).all() and share[2] == pytest.approx(0.5)
    assert share[0] < 1e-6 and share[3] > 0.999


@pytest.mark.parametrize("name", ["concurrency", "input", "output"])
def test_a_load_of_nothing_is_refused(name: str) -> None:
    good = {"concurrency": 1, "input": 1, "output": 1}
    with pytest.raises(ValueError, match=f"{name}: found 0, expected 1 to"):
        loop(*(0 if key == name else value for key, value in good.items()))
