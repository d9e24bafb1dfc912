"""How many rows a GPU kernel's row tile has, and how many tiles a routing needs; no torch.

The rule follows from how many rows an expert is expected to have, which is known before the step:
all routers of one operating point run the same kernel, in a graph and outside of it.
"""

LEAST_ROWS, MOST_ROWS = 16, 128
ROWS_WITH_ROOM = 64
"""Largest tile that is chosen with room for twice the mean."""


def rows_of_tile(mean_rows: float) -> int:
    """Rows of a tile for experts of this many rows in the mean: 16, 32, 64 or 128.

    Loads vary around their mean, and an expert with one row more than its tile reads its weights
    twice. So a tile holds twice the mean, up to 64 rows, where weights no longer bound the kernel.
    """
    wanted = min(2 * mean_rows, ROWS_WITH_ROOM)
    rows = LEAST_ROWS
    while rows < min(max(wanted, mean_rows), MOST_ROWS):
        rows *= 2
    return rows


def most_row_tiles(bound: int, num_experts: int, rows: int) -> int:
    """The most row tiles that `bound` assignments over `num_experts` experts can need.

    Most are needed where as many experts as possible have one assignment, and one all others.
    """
    touched = min(bound, num_experts)
    return touched + (bound - touched) // rows
