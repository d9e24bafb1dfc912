"""The imitation of a GPU itself: devices, memory, and what is left of it afterwards."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from imitated_boards import boards, folder

from moebench.doctor.imitation.device import Boards
from moebench.doctor.imitation.imitate import imitated_gpu
from moebench.doctor.imitation.nvml import has_compiler

__all__ = ["boards", "folder"]

pytestmark = pytest.mark.skipif(not has_compiler(), reason="no gcc for the simulated NVML library")


def test_tensors_of_two_devices_meet_as_on_a_gpu(boards: Boards) -> None:
    x = torch.ones(3, device="cuda:1")
    for other in (torch.ones(3), torch.ones(3, device="cuda:0")):
        with pytest.raises(RuntimeError, match="at least two devices"):
            x + other
    assert (x.cpu() + torch.ones(3)).tolist() == [2.0, 2.0, 2.0]
    assert (x * torch.tensor(2.0)).device == torch.device("cuda", 1)
    assert (boards.home(x.cpu()), boards.waits) == (None, 2)


def test_a_default_device_concerns_the_same_functions_afterwards(folder: Path) -> None:
    """In a process that has asked for none before; torch keeps the functions that it finds."""
    program = (
        "import torch\nfrom pathlib import Path\n"
        "from moebench.doctor.imitation.imitate import imitated_gpu\n"
        f"with imitated_gpu(Path({str(folder)!r})), torch.device('cuda:0'):\n"
        "    print(torch.zeros(2).device, torch.tensor([1]).device)\n"
        "with torch.device('meta'):\n    print(torch.tensor([1]).device)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["cuda:0", "cuda:0", "meta"], done.stderr


def test_tensors_that_a_cache_keeps_are_on_their_board_in_the_next_imitation(folder: Path) -> None:
    with imitated_gpu(folder, 2):
        kept = [torch.ones(3, device=f"cuda:{index}") for index in (0, 1)]
    assert {one.device.type for one in kept} == {"cpu"}
    with imitated_gpu(folder, 1):
        assert kept[0].device == torch.device("cuda", 0)
        assert torch.cuda.memory_allocated(0) >= kept[0].nbytes
        assert kept[1].device.type == "cpu", "there is no second board"


def test_memory_is_counted_and_runs_out(boards: Boards) -> None:
    before = torch.cuda.memory_allocated(0)
    x = torch.empty(2**20, device="cuda:0")
    assert torch.cuda.memory_allocated(0) - before == 2**22
    del x
    assert torch.cuda.memory_allocated(0) == before
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        torch.empty(2**40, device="meta").new_empty(2**40, device="cuda:0")
