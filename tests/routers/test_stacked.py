"""The stack of two parameters: kept in inference, never older than what it is made of."""

import pytest
import torch
from torch import nn

from moebench.routers.stacked import Stacked


def parts() -> tuple[nn.Parameter, nn.Parameter]:
    return nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(2, 4))


def test_inference_keeps_one_stack() -> None:
    stacked, pair = Stacked(), parts()
    with torch.no_grad():
        first = stacked(*pair)
        assert stacked(*pair) is first
    assert torch.equal(first, torch.cat(pair))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_change_of_a_part_changes_the_stack(mode: type) -> None:
    stacked, (above, below) = Stacked(), parts()
    with mode():
        stacked(above, below)
        below.add_(1)
        assert torch.equal(stacked(above, below), torch.cat((above, below)))
        above.data = torch.randn(3, 4)
        assert torch.equal(stacked(above, below), torch.cat((above, below)))
        above.data, below.data = above.double(), below.double()
        assert stacked(above, below).dtype == torch.float64
        other = parts()
        assert torch.equal(stacked(*other), torch.cat(other))


def test_gradients_reach_the_parts() -> None:
    stacked, pair = Stacked(), parts()
    with torch.no_grad():
        stacked(*pair)
    stacked(*pair).sum().backward()
    assert all(part.grad is not None and bool((part.grad == 1).all()) for part in pair)


def test_the_stack_has_the_first_parts_type() -> None:
    above, below = parts()
    with torch.no_grad():
        assert Stacked()(above.bfloat16(), below).dtype == torch.bfloat16
