"""Parameters of operations from the nearest fits; intervals as wide as these are far."""

import math
from dataclasses import dataclass

import numpy as np
import pytest

from moebench.predict.arrays import Floats, OverCases
from moebench.predict.kernels.catalogue import FitError
from moebench.predict.operations import price as prices
from moebench.predict.operations.fits import OperationFit
from moebench.predict.operations.nearest import basis_of, nearest, software_weight
from moebench.predict.operations.operation import Operation, Software
from moebench.predict.operations.price import bounds, priced
from moebench.predict.parameters import parameter
from moebench.spec.hardware import HardwareSpec, load_hardware


@dataclass(frozen=True)
class CopyParameters:
    start: float = parameter(5e-6, 0.5, "s")
    share: float = parameter(0.8, 0.2, "", ceiling=1.0)


@dataclass(frozen=True)
class CopyCalls(OverCases):
    size: Floats


def copy_time(p: CopyParameters, hardware: HardwareSpec, calls: CopyCalls, warm: bool) -> Floats:
    return p.start + calls.size / (hardware.memory_bandwidth * p.share)


COPY = Operation("copy", CopyParameters, copy_time)
FA3 = Software("vllm", "0.24.0", "fa3")


def fit(software: Software, system: str, start: float = 5e-6, share: float = 0.8) -> OperationFit:
    parameters = CopyParameters(start, share)
    return OperationFit(software, system, parameters, 100, FitError(1, 1, 1), "t", "0")


def test_a_fit_of_this_kernel_on_this_device_is_taken_as_it_is() -> None:
    fits = [fit(FA3, "h100-sxm", share=0.9), fit(FA3, "b200-sxm", share=0.5)]
    found = priced(COPY, FA3, load_hardware("h100-sxm"), fits)
    assert found.basis == "fitted"
    assert found.parameters == fits[0].parameters


def test_a_sibling_takes_shares_of_its_own_data_sheet() -> None:
    """H200 has H100's multiprocessors: its price is H100's share of H200's bandwidth."""
    h200 = load_hardware("h200-sxm")
    found = priced(COPY, FA3, h200, [fit(FA3, "h100-sxm", share=0.9)])
    assert found.basis == "sibling"
    size = np.array([1e12])
    assert found.seconds(CopyCalls(size))[0] == pytest.approx(
        5e-6 + 1e12 / (0.9 * h200.memory_bandwidth)
    )


def test_b300_runs_the_kernels_of_b200_but_l40s_not_those_of_a100() -> None:
    """Capabilities 10.3 and 10.0 have tcgen05; 8.9 and 8.0 share `mma.sync` with many others."""
    for device, measured, expected in (
        ("b300-sxm", "b200-sxm", "sibling"),
        ("gb300", "b200-sxm", "sibling"),
        ("l40s", "a100-sxm-80gb", "device"),
    ):
        assert basis_of(FA3, load_hardware(device), [fit(FA3, measured)]) == expected


def test_over_a_link_a_sibling_stands_in_a_server_of_its_kind() -> None:
    """GB200's link joins 72 devices, B200's and B300's eight."""
    for device, expected in (("gb200", "device"), ("b300-sxm", "sibling")):
        found = basis_of(FA3, load_hardware(device), [fit(FA3, "b200-sxm")], over_link=True)
        assert found == expected


def test_the_nearer_fit_weighs_more() -> None:
    h200 = load_hardware("h200-sxm")
    near, far = fit(FA3, "h100-sxm", share=0.9), fit(FA3, "a100-sxm-80gb", share=0.5)
    mean = nearest(COPY, FA3, h200, [near, far]).mean[1]
    middle = (math.log(0.9) + math.log(0.5)) / 2
    assert middle < mean < math.log(0.9)


def test_every_step_away_from_the_software_weighs_less() -> None:
    others = [
        FA3,
        Software("vllm", "0.14.0", "fa3"),
        Software("sglang", "0.5.14", "fa3"),
        Software("vllm", "0.24.0", "triton"),
        Software("sglang", "0.5.14", "triton"),
    ]
    weights = [software_weight(FA3, other) for other in others]
    assert weights == sorted(weights, reverse=True) and len(set(weights)) == len(weights)


@pytest.mark.parametrize(
    ("software", "device", "expected"),
    [
        (FA3, "h100-sxm", "fitted"),
        (Software("vllm", "0.30.0", "fa3"), "h100-sxm", "version"),
        (FA3, "h200-sxm", "sibling"),
        (FA3, "b200-sxm", "device"),
        (Software("sglang", "0.5.14", "fa3"), "h100-sxm", "software"),
        (Software("vllm", "0.24.0", "triton"), "h100-sxm", "software"),
        (FA3, "mi300x", "maker"),
    ],
)
def test_the_basis_says_how_near_the_nearest_fit_is(
    software: Software, device: str, expected: str
) -> None:
    assert basis_of(software, load_hardware(device), [fit(FA3, "h100-sxm")]) == expected


def test_without_fits_the_typical_values_price() -> None:
    found = priced(COPY, FA3, load_hardware("h100-sxm"), [])
    assert found.parameters.start == pytest.approx(5e-6)
    assert found.parameters.share == pytest.approx(0.8)


def test_a_less_sure_basis_is_never_narrower(monkeypatch: pytest.MonkeyPatch) -> None:
    wide, narrow = ((-0.5, 0.4),) * 3, ((-0.1, 0.2),) * 3
    monkeypatch.setattr(
        prices, "shipped_bounds", lambda: {"copy": {"fitted": wide, "device": narrow}}
    )
    assert bounds("copy", "device") == wide
    assert bounds("copy", "sibling") == wide
    assert np.isnan(bounds("copy", "maker")).all()


def test_a_software_has_bounds_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepEP's kernels err by 4 %, calls of them from the host by 30 %."""
    all_of_it, own = ((-0.5, 0.4),) * 3, ((-0.1, 0.1),) * 3
    known = {"copy": {"fitted": all_of_it}, "copy.sglang": {"fitted": own}}
    monkeypatch.setattr(prices, "shipped_bounds", lambda: known)
    assert bounds("copy", "fitted", "sglang") == own
    assert bounds("copy", "fitted", "vllm") == all_of_it
