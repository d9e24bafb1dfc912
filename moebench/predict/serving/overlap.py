"""Exchange that hides behind computing, and computing behind exchange: chunks and two batches.

With n equal parts one part's computing runs beside another's exchange, so that a step takes
max(C, X) + min(C, X) / n of its computing C and its exchange X: at best the larger of the two, and
never less than half of both. But n calls of a kernel read the weights n times, so C itself grows
with n; the best n is found by trying.

**Source**: EPS-MoE (2410.12247), section 3.2, the pipeline of experts and all-to-all; two batches
are DeepSeek-V3's (2412.19437), section 3.4.
"""

from dataclasses import replace

import numpy as np

from moebench.predict.arrays import Floats
from moebench.predict.serving.deployment import Deployment

CHUNKS = (1, 2, 3, 4, 6, 8, 12, 16)
"""Numbers of chunks that are tried."""


def exposed(computing: Floats, exchange: Floats, parts: Floats) -> Floats:
    """Seconds of an exchange that computing in so many parts does not hide."""
    larger, smaller = np.maximum(computing, exchange), np.minimum(computing, exchange)
    return np.asarray(larger + smaller / parts - computing)


def best_chunks(deployment: Deployment, batch: int) -> Deployment:
    """The deployment with the number of chunks that makes its own router's step fastest."""
    from moebench.predict.serving.no_router import baseline
    from moebench.predict.serving.prices import kernel_prices
    from moebench.predict.serving.step import step_price

    d = deployment
    router, prices = baseline(d.model), kernel_prices(d)
    tried = [replace(d, parallel=replace(d.parallel, chunks=chunks)) for chunks in CHUNKS]
    return min(
        tried,
        key=lambda one: float(
            step_price(one, prices, router, one.routed_by(router), [batch]).seconds[0]
        ),
    )
