"""Published points priced by engines that were fitted without their source, or their group.

Only times of closed loops are fitted, so the shipped price of any other point has not used it.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from moebench.calibrate.engine import fit_engines
from moebench.calibrate.loops import loops_of, usable
from moebench.calibrate.point_prices import Price, point_price
from moebench.calibrate.published import Point

LABELS: Mapping[str, Callable[[Point], str]] = {
    "source": lambda point: point.source,
    "group": lambda point: point.group,
}
"""What `--leave-out` leaves out together: all points of a source, or of a model on a GPU."""


def left_out_price(points: Sequence[Point], holdout: str) -> Callable[[Point], Price]:
    """A function that prices each of the points; its interval is the shipped one, moved along."""
    seconds = left_out_seconds(points, holdout)

    def price(point: Point) -> Price:
        shipped = point_price(point)
        if point.row not in seconds:
            return shipped
        return shipped * (seconds[point.row] / point.scale / shipped.value)

    return price


def left_out_seconds(points: Sequence[Point], holdout: str) -> dict[int, float]:
    """Seconds of closed loops by their row, each from a fit without its label."""
    by_label: dict[str, list[Point]] = defaultdict(list)
    for point in points:
        by_label[LABELS[holdout](point)].append(point)
    loops = {label: loops_of(own) for label, own in by_label.items()}
    if sum(bool(own) for own in loops.values()) < 2:
        raise ValueError(
            f"--leave-out {holdout}: found one {holdout} of closed loops, expected two"
        )
    found: dict[int, float] = {}
    for label, own in loops.items():
        if own:
            others = [loop for other, each in loops.items() if other != label for loop in each]
            fit = fit_engines(usable(others))
            for loop in own:
                predicted = np.asarray(fit.predicted(loop)).tolist()
                found |= dict(zip(loop.rows.tolist(), predicted, strict=True))
    return found
