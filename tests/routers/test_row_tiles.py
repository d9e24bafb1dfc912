"""Row tiles: each assignment in exactly one tile, of its own expert; rows by the expected load."""

import pytest
import torch

from moebench.routers.row_tiles import most_row_tiles, row_tiles, rows_of_tile


@pytest.mark.parametrize("rows", [16, 32])
@pytest.mark.parametrize(
    "counts", [[0, 5, 16, 0, 33], [70, 0, 0], [0, 0], [1] * 257, [0, 0, 16]], ids=str
)
def test_each_assignment_is_in_one_tile_of_its_expert(counts: list[int], rows: int) -> None:
    tokens_per_expert = torch.tensor(counts)
    bound = sum(counts) + 7
    table = row_tiles(tokens_per_expert, bound, rows).table
    assert table.shape[1] == most_row_tiles(bound, len(counts), rows)
    found = [
        (expert, row)
        for expert, first, end in table.T.tolist()
        if expert < len(counts)
        for row in range(first, end)
    ]
    owners = torch.arange(len(counts)).repeat_interleave(tokens_per_expert).tolist()
    assert found == [(owner, row) for row, owner in enumerate(owners)]
    assert all(end - first <= rows for _, first, end in table.T.tolist())
    behind = table[:, table[0] == len(counts)]
    assert not behind[1:].any()


def test_a_tile_holds_twice_the_mean_until_weights_no_longer_bound_the_kernel() -> None:
    means = {0.1: 16, 8: 16, 8.1: 32, 16: 32, 17: 64, 40: 64, 64: 64, 65: 128, 500: 128}
    assert {mean: rows_of_tile(mean) for mean in means} == means


def test_the_largest_number_of_tiles_is_reached_and_never_passed() -> None:
    assert most_row_tiles(33, 4, 16) == 5
    table = row_tiles(torch.tensor([1, 1, 1, 30]), 33, 16).table
    assert (table[0] < 4).sum() == 5
