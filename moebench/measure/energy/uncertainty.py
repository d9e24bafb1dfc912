"""Uncertainty of joules a step: its parts, and the 95 % interval that follows from them.

Every part is a relative standard uncertainty. The board's gain is systematic: it does not shrink
with repetition, cancels between two routers on one board, and is not in the interval.

Source: the combination is that of JCGM 100:2008 ("GUM"), 5.1.2 and G.4.1 (Welch-Satterthwaite).
"""

import math
from collections.abc import Sequence

import numpy as np

from moebench.measure.energy.window import Window
from moebench.records.confidence import effective_freedom, t_quantile
from moebench.records.energy import EnergyBudget
from moebench.units import Seconds

GAIN = 0.05
"""Relative error of a power sensor, either way. Source: Yang et al., arXiv 2312.02741."""
LAG: Seconds = 0.1
"""Greatest age of the power that a sensor shows: one period of its sampling."""
POLLED = 0.02
"""Standard uncertainty of integrated power. Source: the smaller of the residuals (2 to 5 % over
6 s) that one serving engine published for its estimator on a consumer board."""


def energy_budget(
    windows: Sequence[Window],
    centre: Seconds,
    swing: float,
    jitter_share: float = 0.0,
    polled: bool = False,
) -> EnergyBudget:
    """Parts of the uncertainty of joules a step over at least three windows, each in its own load.

    Aliasing is the scatter of the windows, each at a phase of its own, beyond stamps, broken steps
    and a linear drift. Drift does not change the mean of windows that lie evenly in the load; its
    part comes from their distance to the loads' `centre`, and from the sensor's lag. `swing` is the
    relative standard deviation of power, `jitter_share` the part of the stamps' variance that is
    the counter's uneven beat; `polled` joules are integrated power.
    """
    work = np.array([window.steps for window in windows])
    shares = work / work.sum()
    values = np.array([window.joules_per_step for window in windows])
    values = values / float(shares @ values)
    middle = np.array([(window.begin + window.end) / 2 for window in windows])

    stamp2 = float(np.sum((shares * np.array([window.stamp for window in windows])) ** 2))
    # Each window may lack the same part of a step, so this part does not average out.
    broken = swing * float(shares @ np.array([window.broken for window in windows]))
    offset = middle - middle.mean()
    slope = float(np.sum(offset * values) / np.sum(offset**2))
    residual = values - values.mean() - slope * offset
    freedom = len(windows) - 2
    scatter2 = float(np.sum(residual**2)) / freedom / len(windows)
    away = abs(float(shares @ middle) - centre)
    return EnergyBudget(
        stamp=math.sqrt(stamp2 * (1 - jitter_share)),
        jitter=math.sqrt(stamp2 * jitter_share),
        broken_steps=broken,
        aliasing=math.sqrt(max(0.0, scatter2 - stamp2 - broken**2)),
        drift=abs(slope) * math.hypot(away, LAG / math.sqrt(3)),
        sampling=POLLED if polled else 0.0,
        gain=GAIN,
        freedom=freedom,
        drift_rate=slope * (windows[-1].end - windows[0].begin),
    )


def half_width(budget: EnergyBudget) -> float:
    """Half of the 95 % interval without the gain, relative to the value."""
    known = math.hypot(
        budget.stamp, budget.jitter, budget.broken_steps, budget.drift, budget.sampling
    )
    parts = [(known**2, math.inf), (budget.aliasing**2, budget.freedom)]
    return t_quantile(effective_freedom(parts)) * math.hypot(known, budget.aliasing)
