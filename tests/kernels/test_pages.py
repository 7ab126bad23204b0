"""Copies in huge pages: what they hold, where they lie, and how long."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from compress_kernels.pages import HUGE, HugePages
from torch import Tensor

DTYPES = (torch.bfloat16, torch.int32, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.int64)


def _flags(tensor: Tensor) -> list[str]:
    """What the system says of the memory in which a tensor lies."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split()[0]
        if "-" in head and ":" not in head:
            first, last = (int(part, 16) for part in head.split("-"))
            inside = first <= tensor.data_ptr() < last
        elif inside and head == "VmFlags:":
            return line.split()[1:]
    return []


def test_copies_are_equal_and_their_own() -> None:
    torch.manual_seed(0)
    pages = HugePages()
    originals = [torch.randint(0, 2, (7, 5 + i)).to(dtype).t() for i, dtype in enumerate(DTYPES)]
    copies = [pages.copy(tensor) for tensor in originals]
    for original, copy in zip(originals, copies, strict=True):
        assert copy.dtype == original.dtype
        assert copy.is_contiguous()
        assert copy.data_ptr() % 64 == 0
        assert copy.untyped_storage().nbytes() == original.nbytes
        assert torch.equal(copy.view(torch.uint8), original.contiguous().view(torch.uint8))
    kept = [copy.clone() for copy in copies]
    copies[2].fill_(77)  # touches nobody else
    for i, copy in enumerate(copies):
        assert torch.equal(copy.view(torch.uint8), kept[i].view(torch.uint8)) == (i != 2)


def test_copies_outlive_what_made_them_and_the_original() -> None:
    pages, original = HugePages(), torch.arange(1000)
    copy = pages.copy(original)
    del pages
    original.zero_()
    assert torch.equal(copy, torch.arange(1000))


def test_a_tensor_may_be_larger_than_a_region() -> None:
    pages = HugePages()
    small, large = pages.copy(torch.ones(3)), pages.copy(torch.ones(40 * HUGE, dtype=torch.uint8))
    last = pages.copy(torch.full((5,), 2.0))
    assert int(large.sum(dtype=torch.int64)) == 40 * HUGE
    assert small.tolist() == [1, 1, 1]
    assert last.tolist() == [2] * 5


def test_empty_tensors_and_those_of_other_devices() -> None:
    pages = HugePages()
    assert pages.copy(torch.empty(0, 3)).shape == (0, 3)
    assert pages.copy(torch.empty(4, device="meta")).is_meta


@pytest.mark.skipif(sys.platform != "linux", reason="madvise is of Linux")
def test_the_system_is_asked_for_huge_pages() -> None:
    copy = HugePages().copy(torch.ones(3 * HUGE, dtype=torch.uint8))
    assert copy.data_ptr() % HUGE == 0
    assert "hg" in _flags(copy)
