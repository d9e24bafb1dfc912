"""Laws of the exchange under expert parallelism, and a slow definition of the ranks of a token."""

import functools
import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moebench.predict.communication.exchange import (
    LOW_LATENCY,
    NORMAL,
    ExchangeCalls,
    value_bytes,
)
from moebench.predict.communication.nvlink import NVLINK
from moebench.predict.communication.paths import distinct_groups
from moebench.predict.operations.operation import Operation, Software
from moebench.predict.operations.price import PricedOperation, priced
from moebench.spec.hardware import load_hardware

DEEPEP = {
    LOW_LATENCY: "deepep_ll dispatch",
    NORMAL: "deepep_normal dispatch",
    NVLINK: "NVLinkTwoSided dispatch",
}
OPERATIONS = tuple(DEEPEP)


def calls(**changed: Any) -> ExchangeCalls:
    values = {
        "tokens": 128, "hidden": 7168, "experts": 256, "top_k": 8, "ranks": 8, "nodes": 1,
        "width": value_bytes("fp8"), "sms": 0, "load": 1, "is_combine": 0,
    } | changed  # fmt: skip
    arrays = np.broadcast_arrays(*(np.atleast_1d(np.asarray(v, float)) for v in values.values()))
    return ExchangeCalls(**dict(zip(values, arrays, strict=True)))


@functools.cache
def price(operation: Operation, name: str) -> PricedOperation:
    return priced(operation, Software("sglang", "0.5.12", DEEPEP[operation]), load_hardware(name))


def seconds(operation: Operation, name: str = "h100-sxm", **changed: Any) -> np.ndarray:
    return price(operation, name).seconds(calls(**changed))


@pytest.mark.parametrize(("experts", "groups"), [(8, 2), (8, 4), (6, 3), (12, 4)])
@pytest.mark.parametrize("top_k", [1, 2, 3, 5])
def test_ranks_of_a_token_are_those_of_every_choice_of_experts(
    experts: int, groups: int, top_k: int
) -> None:
    size = experts // groups
    visits = [
        len({expert // size for expert in chosen})
        for chosen in itertools.combinations(range(experts), top_k)
    ]
    found = distinct_groups(*(np.array([float(x)]) for x in (groups, experts, top_k)))
    assert found == pytest.approx(np.mean(visits))


def test_a_mean_of_k_is_a_mixture_of_two_counts() -> None:
    found = distinct_groups(np.array([8.0]), np.array([256.0]), np.array([6.0, 6.25, 7.0]))
    assert found[1] == pytest.approx(0.75 * found[0] + 0.25 * found[2])


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
@pytest.mark.parametrize("name", ["h100-sxm", "b300-sxm", "gb200", "l40s", "mi300x"])
@pytest.mark.parametrize(
    ("name_of", "values"),
    [
        ("tokens", 2.0 ** np.arange(18)),
        ("top_k", np.linspace(1, 16, 31)),
        ("hidden", [512, 2048, 4096, 7168, 16384]),
        ("width", [0.5625, 1.03125, 2]),
        ("load", [1, 1.5, 3, 8]),
    ],
)
def test_more_to_send_is_never_faster(
    operation: Operation, name: str, name_of: str, values: Any
) -> None:
    for ranks in (8, 64):
        times = seconds(operation, name, ranks=ranks, **{"tokens": 512, name_of: values})
        assert np.isfinite(times).all() and (times > 0).all()
        assert (np.diff(times) >= -1e-12 * times[1:]).all()


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_every_number_of_ranks_has_a_price(operation: Operation) -> None:
    for name in ("h100-sxm", "gb200", "l40s", "rtx-4090"):
        for experts in (3, 64, 256):
            times = seconds(
                operation, name, ranks=[1, 2, 6, 72, 96, 4096], experts=experts, top_k=2
            )
            assert np.isfinite(times).all() and (times > 0).all()


def test_low_latency_sends_copies_and_normal_sends_tokens() -> None:
    # Of 256 experts on 8 ranks, 8 choices lie on 5.27 ranks in the mean, and 6 on 4.43.
    many = {"tokens": 65536, "ranks": 8}
    copies = seconds(LOW_LATENCY, top_k=8, **many) / seconds(LOW_LATENCY, top_k=6, **many)
    assert copies == pytest.approx(8 / 6, abs=0.03)
    tokens = seconds(NORMAL, top_k=8, **many) / seconds(NORMAL, top_k=6, **many)
    assert 1.1 < tokens[0] < 5.27 / 4.43 + 0.01


def test_a_smaller_k_saves_nothing_of_a_few_tokens() -> None:
    for operation in (LOW_LATENCY, NORMAL):
        ratio = seconds(operation, tokens=1, top_k=8) / seconds(operation, tokens=1, top_k=6)
        assert 1 <= ratio[0] < 1.02


def test_the_network_between_nodes_binds_large_exchanges() -> None:
    machine = load_hardware("h100-sxm")
    assert machine.network is not None
    slower = replace(machine, network=replace(machine.network, bandwidth=12.5e9))
    software = Software("sglang", "0.5.6.post2", "deepep_ll dispatch")
    many = calls(tokens=1024, ranks=32, nodes=4)
    fast, slow = (priced(LOW_LATENCY, software, one).seconds(many) for one in (machine, slower))
    assert slow[0] == pytest.approx(4 * fast[0], rel=0.15)


def test_idle_multiprocessors_are_needed_for_few_experts() -> None:
    # Low-latency kernels take as many multiprocessors as experts: 8 work one token after another.
    few, many = (seconds(LOW_LATENCY, experts=e, top_k=2, tokens=1024)[0] for e in (8, 256))
    assert few > 2 * many
