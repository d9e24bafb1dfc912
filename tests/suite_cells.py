"""Cells of the suite smoke, made ready to run, for tests."""

import functools
from dataclasses import replace

import torch

from moebench.model.decoder import build_decoder
from moebench.suite.cell import Bench, ReadyCell
from moebench.suite.plan import CellChoice, cells
from moebench.suite.prepare import prepare_cell
from moebench.suite.suite_file import load_suite

SUITE = load_suite("smoke")
CELLS = {cell.key: cell for cell in cells(SUITE, "cpu", CellChoice(backends=("packed",)))}


@functools.cache
def bench() -> Bench:
    decoder = build_decoder(SUITE.model, 2, torch.float32, "cpu", 0)
    return Bench(SUITE.model, decoder, torch.device("cpu"), torch.float32)


@functools.cache
def ready_cell(key: str, num_tokens: int = 4096) -> ReadyCell:
    """A cell with a stream of tokens; as long as a suite's where its statistics are asked for."""
    cell = CELLS[key]
    cases = tuple(replace(case, num_layers=2) for case in cell.cases)
    return prepare_cell(bench(), replace(cell, cases=cases), num_tokens)
