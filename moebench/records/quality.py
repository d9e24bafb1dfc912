"""The quality of a language model under a router: losses with intervals, in nats a byte.

A token is a byte. Two routers read the same windows of the same text, so that their difference is
taken window by window: its interval is narrower than that of either loss.
"""

from dataclasses import dataclass

from moebench.records.results import check_number

MOST_NATS = 1e3
"""A loss beyond this many nats a byte is no loss of a language model on bytes."""


@dataclass(frozen=True)
class SignedInterval:
    """A number of either sign with its interval of 95 %."""

    value: float
    low: float | None
    high: float | None
    """Ends of the interval; None where it could not be estimated."""
    missing: str | None = None
    """Why the ends are None."""

    def __post_init__(self) -> None:
        if (self.low is None) != (self.high is None) or (self.low is None) != bool(self.missing):
            raise ValueError("low, high: expected both ends, or neither and a reason in missing")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low: found {self.low:g}, expected at most high = {self.high:g}")


@dataclass(frozen=True)
class SeedSpread:
    """How far trainings that differ in their seed alone lie apart."""

    seeds: tuple[int, ...]
    losses_nats_per_byte: tuple[float, ...]
    """Mean loss of each seed's router."""
    over_base_nats_per_byte: tuple[float, ...]
    """Mean loss of each seed's router less that of the base; empty for the base."""


@dataclass(frozen=True)
class TextLoss:
    """Loss on one part of the text, and its difference to the base on the same windows.

    With one seed an interval covers other windows of the same text, not other trainings. With
    several it covers both: the variance of the mean over seeds and that over windows are added
    (`moebench.compare.loss_intervals`).
    """

    nats_per_byte: SignedInterval
    """Mean of -log p of the next byte, over windows and seeds."""
    over_base_nats_per_byte: SignedInterval | None
    """The loss less that of the base, window by window; negative is better than the base."""
    over_base_missing: str | None
    """Why there is no difference: "this is the base"."""
    spread: SeedSpread

    def __post_init__(self) -> None:
        check_number(self.nats_per_byte, "value", most=MOST_NATS)
        if (self.over_base_nats_per_byte is None) != bool(self.over_base_missing):
            raise ValueError("over_base_missing: expected a reason where there is no difference")


@dataclass(frozen=True)
class ShiftedLoss:
    """Loss on a text of another domain, on which nothing was trained and no option was chosen."""

    text: str
    """Name of the text."""
    text_sha256: str
    loss: TextLoss
    """Loss on its test part, and the difference to the base on the same windows."""
    num_windows: int
    """Windows of that part, as long as those of the text at home."""
    mean_k_by_seed: tuple[float, ...]
    """Experts a token there, mean over layers: a router is not set anew for another domain."""

    def __post_init__(self) -> None:
        check_number(self, "num_windows", least=1)
        seeds = len(self.loss.spread.seeds)
        if len(self.mean_k_by_seed) != seeds:
            raise ValueError(
                f"mean_k_by_seed: found {len(self.mean_k_by_seed)} numbers, expected one for each "
                f"of {seeds} seeds"
            )


@dataclass(frozen=True)
class Quality:
    """What a language model with a router loses on a text, and what it was trained on.

    The base has one seed: every difference holds for this base.
    """

    validation: TextLoss
    """Loss on the part that options were chosen by."""
    test: TextLoss
    """Loss on the part that nothing was chosen by."""
    num_windows: int
    """Windows of each part."""
    window_bytes: int
    """Bytes of a window, each of which is predicted from those before it."""
    base_tokens: int
    """Tokens that the base was trained on."""
    router_tokens: int
    """Tokens that the router (and what was trained with it) saw after the base; 0: untrained."""
    text: str
    """Name of the text."""
    text_sha256: str
    batch_windows: int | None = None
    """Windows of a decode batch, where the choice depends on the batch (`oea`); else None."""
    shifted: ShiftedLoss | None = None
    """Loss on a text of another domain; None: none was asked for."""

    def __post_init__(self) -> None:
        check_number(self, "num_windows", "window_bytes", least=1)
        check_number(self, "base_tokens", "router_tokens")
