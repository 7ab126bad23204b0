"""Hidden states in memory and in a file: the same values, copies to the reader, a file that does not outlive them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from compress.calibrate import hidden_states
from compress.calibrate.hidden_states import Activations
from compress.errors import UserError

CPU = torch.device("cpu")


@pytest.mark.parametrize("spill", [False, True])
def test_what_was_written_is_read(tmp_path: Path, spill: bool) -> None:
    states = Activations((4, 3, 2), torch.bfloat16, CPU, tmp_path / "new" if spill else None)
    assert states.spilled == spill
    values = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0))
    for rows in (slice(0, 3), slice(3, 4)):
        states.write(rows, values[rows])
    read = states.read(slice(1, 4), CPU, torch.float32)
    assert read.dtype == torch.float32
    assert torch.equal(read, values[1:4].bfloat16().float())
    states.close()


def test_a_reader_gets_a_copy() -> None:
    states = Activations((2, 1, 2), torch.float32, CPU)
    states.write(slice(0, 2), torch.ones(2, 1, 2))
    states.read(slice(0, 2), CPU, torch.float32).zero_()
    assert torch.equal(states.read(slice(0, 2), CPU, torch.float32), torch.ones(2, 1, 2))


def test_the_file_has_its_room_reserved_and_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reserved: list[int] = []
    monkeypatch.setattr(
        hidden_states,
        "_reserve",
        lambda handle, nbytes: reserved.append(nbytes) or os.truncate(handle, nbytes),
    )
    states = Activations((4, 8, 16), torch.bfloat16, CPU, tmp_path)
    assert reserved == [4 * 8 * 16 * 2]
    states.write(slice(0, 4), torch.ones(4, 8, 16))
    if os.name == "posix":
        assert list(tmp_path.iterdir()) == []  # the mapping alone keeps it
    states.close()
    states.close()
    assert list(tmp_path.iterdir()) == []
    assert states.data.numel() == 0


def test_a_full_disk_is_refused_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, nbytes: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hidden_states, "_reserve", full)
    with pytest.raises(UserError, match=r"0\.0 GiB of activations do not fit into .*No space left on device"):
        Activations((4, 8, 16), torch.bfloat16, CPU, tmp_path)
    assert list(tmp_path.iterdir()) == []
