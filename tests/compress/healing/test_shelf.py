"""Tensors on a shelf are mapped: they take no memory of the process, and keep what is written into them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from compress.errors import UserError
from compress.healing.shelf import IN_MEMORY, Shelf


def test_what_is_placed_is_a_copy_in_the_file(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "shelf")
    one = torch.arange(6.0).view(2, 3)
    placed = shelf.place_all("a", {"x": one, "codes": torch.tensor([1, 2], dtype=torch.uint8)})
    assert torch.equal(placed["x"], one)
    one.zero_()
    placed["x"][0, 0] = 7.0
    assert placed["x"].flatten().tolist() == [7.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    on_disk = (tmp_path / "shelf").read_bytes()
    assert torch.frombuffer(bytearray(on_disk[:24]), dtype=torch.float32).tolist() == [7, 1, 2, 3, 4, 5]
    assert on_disk[-2:] == b"\x01\x02"


def test_a_place_of_the_same_name_is_used_again(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "shelf")
    first = shelf.place("x", torch.zeros(4))
    size = (tmp_path / "shelf").stat().st_size
    again = shelf.place("x", torch.ones(4))
    assert again.data_ptr() == first.data_ptr()
    assert (tmp_path / "shelf").stat().st_size == size
    assert shelf.place("x", torch.ones(5)).data_ptr() != first.data_ptr()


def test_without_a_file_all_stays_in_memory() -> None:
    one = torch.ones(2)
    assert IN_MEMORY.place("x", one) is one
    copied = IN_MEMORY.copies("best", {"x": one})["x"]
    assert copied.data_ptr() != one.data_ptr()
    assert torch.equal(copied, one)


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    shelf = Shelf(tmp_path / "shelf")
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match="no room for the output"):
        shelf.place("x", torch.ones(2))
