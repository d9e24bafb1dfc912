"""Dense slots of a flat routing, and a flat routing at the slots' upper bound."""

import pytest
import torch

from moebench.routers.routing import Choice, Routing

KEEP = {
    "ragged": [[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1]],
    "one each": [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]],
    "nothing": [[0, 0, 0]] * 4,
}


@pytest.mark.parametrize("case", KEEP)
def test_slots_hold_every_assignment_once_and_sentinels_else(case: str) -> None:
    keep = torch.tensor(KEEP[case]) > 0
    experts = torch.stack([torch.randperm(5)[:3] for _ in range(4)])
    weights = torch.rand(4, 3)
    slot_weights, slot_experts = Routing.from_slots(weights, experts, 5, keep).slots
    assert slot_experts.shape == (4, int(keep.sum(1).max()))
    for token in range(4):
        given = dict(
            zip(
                experts[token, keep[token]].tolist(),
                weights[token, keep[token]].tolist(),
                strict=True,
            )
        )
        found = list(zip(slot_experts[token].tolist(), slot_weights[token].tolist(), strict=True))
        filled = [(expert, weight) for expert, weight in found if expert != 5]
        assert dict(filled) == given and len(filled) == len(given)
        assert found[len(filled) :] == [(5, 0.0)] * (len(found) - len(filled))


def test_gradients_reach_the_weights_through_slots() -> None:
    weights = torch.rand(3, 2, requires_grad=True)
    experts = torch.tensor([[0, 1], [1, 2], [2, 0]])
    Routing.from_slots(weights, experts, 3).slots[0].square().sum().backward()
    torch.testing.assert_close(weights.grad, 2 * weights.detach())


@pytest.mark.parametrize("case", [*KEEP, "everything"])
def test_a_bounded_routing_is_the_compact_one_with_a_tail(case: str) -> None:
    keep = None if case == "everything" else torch.tensor(KEEP[case]) > 0
    experts = torch.stack([torch.randperm(5)[:3] for _ in range(4)])
    weights = torch.rand(4, 3)
    compact = Routing.from_slots(weights, experts, 5, keep)
    bounded = Routing.bounded(Choice(weights, experts, 5, keep))
    count = compact.num_assignments
    assert bounded.num_assignments == 12
    assert torch.equal(bounded.tokens_per_expert, compact.tokens_per_expert)
    for field in ("token_indices", "expert_indices", "weights"):
        assert torch.equal(getattr(bounded, field)[:count], getattr(compact, field))
    assert (bounded.expert_indices[count:] == 5).all()


@pytest.mark.parametrize("case", KEEP)
@pytest.mark.parametrize("is_bounded", [False, True])
def test_places_lead_from_each_kept_slot_to_its_assignment(case: str, is_bounded: bool) -> None:
    keep = torch.tensor(KEEP[case]) > 0
    experts = torch.stack([torch.randperm(5)[:3] for _ in range(4)])
    choice = Choice(torch.rand(4, 3), experts, 5, keep)
    routing = Routing.bounded(choice) if is_bounded else Routing.from_slots(*choice)
    places = routing.slot_places()
    assert torch.equal(places >= 0, keep)
    assert torch.equal(routing.expert_indices[places[keep]], experts[keep])
    assert torch.equal(routing.token_indices[places[keep]], keep.nonzero()[:, 0])
    assert torch.equal(routing.weights[places[keep]], choice.weights[keep])
