"""A GPU's board while cells are timed: it is read between the timed visits of every round."""

from collections.abc import Mapping
from typing import Any

import torch

from moebench.measure.nvml import Board, Fault, connect, is_simulated
from moebench.records.board import BoardLook, BoardState
from moebench.records.results import Caveat, Provenance
from moebench.units import Seconds, text

HARMFUL = ("hw-slowdown", "sw-thermal", "hw-thermal", "power-brake")
"""Reasons for lower clocks that are faults; a power cap is a normal state."""


class BoardWatch:
    """Reads clocks, temperature and reasons of throttling; a board without NVML has none."""

    def __init__(self, device: torch.device, nvml: Any = None) -> None:
        self._board: Board | None = None
        self._missing: str | None = None
        self._provenance: Provenance = "measured"
        self._looks: list[BoardLook] = []
        uuid = torch.cuda.get_device_properties(device).uuid
        try:
            binding = connect(nvml)
            self._provenance = "simulated" if is_simulated(binding) else "measured"
            self._board = Board(binding, f"GPU-{uuid}")
        except Fault as fault:
            self._missing = str(fault)

    def look(self, number: int) -> None:
        """Read the board as it is now, as that of round `number`; work should be running on it."""
        if self._board is None:
            return
        seen = self._board.state()
        reasons = None if seen["reasons"] is None else tuple(seen["reasons"])
        clocks = seen["sm_clock_hz"], seen["memory_clock_hz"], seen["temperature_c"]
        self._looks.append(BoardLook(number, *clocks, reasons))

    def state(self) -> BoardState:
        """What was read, and the time of lowered clocks since this object was made."""
        throttled = {} if self._board is None else self._board.throttled()
        return BoardState(tuple(self._looks), throttled, self._missing, self._provenance)


def throttling(shares: Mapping[str, float], seconds: Mapping[str, Seconds]) -> tuple[Caveat, ...]:
    """The caveat of a board that was held back; none for a board at its power cap or above it.

    Args:
        shares: of the looks at the board in which a reason for lower clocks was active.
        seconds: time of lowered clocks by cause, which also counts between two looks.
    """
    harmful = [f"{name} in {shares[name]:.0%} of looks" for name in HARMFUL if shares.get(name)]
    spells = {name: spent for name, spent in seconds.items() if name != "power" and spent > 0}
    harmful += [f"{name} for {text(spent, 'time')}" for name, spent in spells.items()]
    if not harmful:
        return ()
    return (
        Caveat(
            "throttled",
            f"the board held its clocks down: {', '.join(harmful)}",
            "latency and energy are those of a throttled board",
            "cool it, or check its power supply",
        ),
    )


def board_watch(device: torch.device) -> BoardWatch | None:
    """The watch of a device's board; None for a processor."""
    return BoardWatch(device) if device.type == "cuda" else None
