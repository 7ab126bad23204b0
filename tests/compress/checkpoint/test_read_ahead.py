"""What is read in the background: the bytes of the tensors and no others, until somebody stops it."""

from __future__ import annotations

import itertools
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from compress.checkpoint import read_ahead
from compress.checkpoint.headers import TensorInfo
from compress.checkpoint.read_ahead import ReadAhead


def a_tensor(file: Path, offset: int, nbytes: int) -> TensorInfo:
    return TensorInfo(torch.uint8, (nbytes,), nbytes, file, offset)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """File, offset and bytes of every read."""
    calls: list[tuple[str, int, int]] = []
    real = os.preadv

    def noted(descriptor: int, buffers: list[Any], offset: int) -> int:
        count = real(descriptor, buffers, offset)
        calls.append((Path(os.readlink(f"/proc/self/fd/{descriptor}")).name, offset, count))
        return count

    monkeypatch.setattr(os, "preadv", noted)
    return calls


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(bytes(1000))
    second.write_bytes(bytes(1000))
    return first, second


def test_the_bytes_of_the_tensors_file_by_file(
    files: tuple[Path, Path], read: list[tuple[str, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_ahead, "_PIECE", 100)
    first, second = files
    clock = itertools.count()
    with ReadAhead(lambda: float(next(clock))) as ahead:
        ahead.begin(
            [
                a_tensor(second, 500, 50),
                a_tensor(first, 250, 30),
                a_tensor(first, 100, 150),
                a_tensor(first, 5, 0),
            ]
        )
        assert ahead.wait() == (0.0, 1.0)
    # Side by side they are one range, read in pieces.
    assert read == [("a", 100, 100), ("a", 200, 80), ("b", 500, 50)]


def test_one_after_the_other(files: tuple[Path, Path], read: list[tuple[str, int, int]]) -> None:
    with ReadAhead(lambda: 0.0) as ahead:
        for offset in (0, 10, 20):
            ahead.begin([a_tensor(files[0], offset, 10)])
        ahead.wait()
    assert read == [("a", 0, 10), ("a", 10, 10), ("a", 20, 10)]


def test_a_file_that_cannot_be_read_is_left_to_whoever_needs_it(
    files: tuple[Path, Path], read: list[tuple[str, int, int]]
) -> None:
    first, second = files
    with ReadAhead(lambda: 0.0) as ahead:
        ahead.begin(
            [a_tensor(first.with_name("0"), 0, 10), a_tensor(first, 990, 20), a_tensor(second, 0, 10)]
        )
        ahead.wait()
    assert read == [("a", 990, 10), ("a", 1000, 0), ("b", 0, 10)]


def test_the_end_stops_the_reading(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_ahead, "_PIECE", 1)
    reading, stopped, calls = threading.Event(), threading.Event(), []

    def slow(*arguments: Any) -> int:
        calls.append(arguments)
        reading.set()
        assert stopped.wait(30)
        return 1

    monkeypatch.setattr(os, "preadv", slow)
    before = threading.active_count()
    with ReadAhead(lambda: 0.0) as ahead:
        ahead.begin([a_tensor(files[0], 0, 1000)])
        assert reading.wait(30)
        monkeypatch.setattr(
            ahead._thread, "shutdown", lambda: (stopped.set(), type(ahead._thread).shutdown(ahead._thread))
        )
    assert len(calls) == 1
    assert threading.active_count() == before
