"""Speculative decoding: tokens that are drafted ahead, and how many of them a step keeps."""

from dataclasses import dataclass

MOST_TOKENS = 64


@dataclass(frozen=True)
class Draft:
    """Tokens drafted for each sequence before a step, which verifies them all at once."""

    tokens: int
    """Drafted tokens of a sequence."""
    acceptance: float
    """Chance that a drafted token is kept if those before it were."""

    def __post_init__(self) -> None:
        if not 1 <= self.tokens <= MOST_TOKENS:
            raise ValueError(f"draft: found {self.tokens} tokens, expected 1 to {MOST_TOKENS}")
        if not 0 <= self.acceptance <= 1:
            raise ValueError(f"draft: found acceptance {self.acceptance:g}, expected 0 to 1")

    @property
    def tokens_per_step(self) -> float:
        """Expected tokens of a step: the kept ones and the one that the step itself writes.

        **Source**: Leviathan et al., 2211.17192, equation 1.
        """
        return sum(self.acceptance**kept for kept in range(self.tokens + 1))
