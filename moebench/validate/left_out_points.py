"""Published points priced by engines or trainers fitted without their source, or their group.

Engines are fitted to closed loops and static batches, trainers to training; the shipped price of
any other point has not used it.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from moebench.calibrate.published.engine import fit_engines, log_error
from moebench.calibrate.published.loops import Loop, loops_of, usable
from moebench.calibrate.published.prices import Price, point_price
from moebench.calibrate.published.tables import METRICS, Point
from moebench.calibrate.published.training import left_out_training

LABELS: Mapping[str, Callable[[Point], str]] = {
    "source": lambda point: point.source,
    "group": lambda point: point.group,
}
"""What `--leave-out` leaves out together: all points of a source, or of a model on a GPU."""


def left_out_price(
    points: Sequence[Point], holdout: str, more: Sequence[Point] = ()
) -> Callable[[Point], Price]:
    """A function that prices each of the points; its interval is the shipped one, moved along.

    Args:
        points: of one table.
        holdout: what is left out together, of `LABELS`.
        more: of other tables, which are fitted too, as far as they are not left out.
    """
    longer = left_out_training(points, LABELS[holdout])
    if len(longer) < len(points):
        longer |= left_out_ratios(points, holdout, more)

    def price(point: Point) -> Price:
        shipped = point_price(point)
        if point.row not in longer:
            return shipped
        ratio = longer[point.row] if METRICS[point.metric] == "s" else 1 / longer[point.row]
        return shipped * (point.value * ratio / shipped.value)

    return price


def left_out_ratios(
    points: Sequence[Point], holdout: str, more: Sequence[Point]
) -> dict[int, float]:
    """Predicted over measured seconds by row, each from a fit without the point's label."""
    loops, others = (_by_label(each, LABELS[holdout]) for each in (points, more))
    if len(loops | others) < 2:
        raise ValueError(
            f"--leave-out {holdout}: found one {holdout} of closed loops, expected two"
        )
    found: dict[int, float] = {}
    for label, own in loops.items():
        known = [each for part in (loops, others) for name, each in part.items() if name != label]
        fit = fit_engines(usable(loop for each in known for loop in each))
        for loop in own:
            ratios = np.exp(log_error(fit, loop)).tolist()
            found |= dict(zip(loop.rows.tolist(), ratios, strict=True))
    return found


def _by_label(points: Sequence[Point], label: Callable[[Point], str]) -> dict[str, list[Loop]]:
    """Closed loops by the label of their points, as far as there are any."""
    by_label: dict[str, list[Point]] = defaultdict(list)
    for point in points:
        by_label[label(point)].append(point)
    loops = {name: loops_of(own) for name, own in by_label.items()}
    return {name: own for name, own in loops.items() if own}
