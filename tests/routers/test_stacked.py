"""The stack of two parameters: kept in inference, never older than what it is made of."""

import pytest
import torch
from torch import nn

from moebench.routers.stacked import Stacked


def parts(are_trained: bool = False) -> tuple[nn.Parameter, nn.Parameter]:
    above, below = (nn.Parameter(torch.randn(rows, 4), are_trained) for rows in (3, 2))
    return above, below


def test_frozen_parts_have_one_stack() -> None:
    stacked, pair = Stacked(), parts()
    first = stacked(*pair)
    assert stacked(*pair) is first
    assert torch.equal(first, torch.cat(pair))


@torch.no_grad()
def test_a_fused_step_changes_the_stack() -> None:
    """Such a step counts no version of a parameter up."""
    stacked, pair = Stacked(), parts(are_trained=True)
    optimiser = torch.optim.AdamW(pair, fused=True)
    stacked(*pair)
    for part in pair:
        part.grad = torch.ones_like(part)
    optimiser.step()
    assert torch.equal(stacked(*pair), torch.cat(pair))


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
    stacked, pair = Stacked(), parts(are_trained=True)
    with torch.no_grad():
        stacked(*pair)
    stacked(*pair).sum().backward()
    assert all(part.grad is not None and bool((part.grad == 1).all()) for part in pair)


def test_the_stack_has_the_first_parts_type() -> None:
    above, below = parts()
    with torch.no_grad():
        assert Stacked()(above.bfloat16(), below).dtype == torch.bfloat16
