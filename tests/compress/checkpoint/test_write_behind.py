"""A block is put on disk while the next one is made: one at a time, the journal last, and its failure is the run's."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from compress_kernels.layouts import TensorSpec
from torch import Tensor

from compress.checkpoint.journal import Entry
from compress.checkpoint.output import JOURNAL, DiskFull
from compress.checkpoint.shards import lay_out
from compress.checkpoint.writer import Writer
from compress.errors import UserError

BLOCKS = 3


@dataclass(frozen=True)
class NoSource:
    path: Path

    def raw_bytes(self, name: str) -> memoryview:
        raise AssertionError(name)

    def extra_files(self) -> list[Path]:
        return []


def values(index: int) -> dict[str, Tensor]:
    return {f"blocks.{index}": torch.full((8,), index, dtype=torch.int32)}


def opened(tmp_path: Path, **options: Any) -> Writer:
    (tmp_path / "source").mkdir(exist_ok=True)
    shards = lay_out([(f"blocks.{index}", TensorSpec((8,), torch.int32)) for index in range(BLOCKS)])
    return Writer(tmp_path / "out", shards, source=NoSource(tmp_path / "source"), fingerprint="f", **options)


def journaled(tmp_path: Path) -> list[int]:
    lines = (tmp_path / "out.partial" / JOURNAL).read_text().splitlines()[1:]
    return [json.loads(line)["block"] for line in lines]


def put(writer: Writer, index: int) -> None:
    writer.put(values(index))
    writer.finish_block(index, {})


class Disk:
    """fsync outside of the main thread waits for :attr:`free`, and then fails with :attr:`error`, if there is one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free, self.reached, self.error = threading.Event(), threading.Event(), 0
        self._real = os.fsync
        monkeypatch.setattr(os, "fsync", self)

    def __call__(self, descriptor: int) -> None:
        if threading.current_thread() is not threading.main_thread():
            self.reached.set()
            assert self.free.wait(30)
            if self.error:
                raise OSError(self.error, os.strerror(self.error))
        self._real(descriptor)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk(monkeypatch)
    yield disk
    disk.free.set()


def test_the_next_block_is_made_while_the_last_is_put_on_disk(tmp_path: Path, disk: Disk) -> None:
    with opened(tmp_path) as writer:
        put(writer, 0)
        assert disk.reached.wait(30)
        writer.put(values(1))
        assert torch.equal(writer.read("blocks.1"), values(1)["blocks.1"])
        assert (writer.done, journaled(tmp_path)) == ({}, [])
        disk.free.set()
        writer.settle()
        assert (list(writer.done), journaled(tmp_path)) == ([0], [0])
        assert list(writer.done[0].tensors) == ["blocks.0"]


def test_one_block_is_on_its_way_at_most(tmp_path: Path, disk: Disk) -> None:
    with opened(tmp_path) as writer:
        put(writer, 0)
        assert disk.reached.wait(30)
        threading.Timer(0.2, disk.free.set).start()
        put(writer, 1)
        assert disk.free.is_set()
        assert list(writer.done) == [0]


def test_what_is_on_its_way_can_be_read(tmp_path: Path, disk: Disk) -> None:
    disk.free.set()
    with opened(tmp_path) as writer:
        put(writer, 0)
        assert torch.equal(writer.read("blocks.0"), values(0)["blocks.0"])


@pytest.mark.parametrize("at", ["next block", "settle", "finish", "end"])
def test_a_failure_is_told_in_a_sentence(tmp_path: Path, disk: Disk, at: str) -> None:
    disk.free.set()
    with (
        pytest.raises(DiskFull, match=r"no room for the output.* 1 block is kept"),
        opened(tmp_path) as writer,
    ):
        put(writer, 0)
        writer.settle()
        disk.error = errno.ENOSPC
        put(writer, 1)
        if at == "next block":
            put(writer, 2)
        elif at == "settle":
            writer.settle()
        elif at == "finish":
            writer.finish({}, lambda written: None, files=lambda report: {})
    assert journaled(tmp_path) == [0]
    disk.error = 0
    with opened(tmp_path) as writer:
        assert list(writer.done) == [0]


def test_a_failure_of_the_first_block_leaves_nothing(tmp_path: Path, disk: Disk) -> None:
    disk.free.set()
    disk.error = errno.EIO
    with pytest.raises(UserError, match="cannot be written"), opened(tmp_path) as writer:
        put(writer, 0)
    assert not (tmp_path / "out.partial").exists()


def test_what_went_wrong_first_is_told(tmp_path: Path, disk: Disk) -> None:
    disk.free.set()
    disk.error = errno.ENOSPC
    with pytest.raises(RuntimeError, match="solver"), opened(tmp_path) as writer:
        put(writer, 0)
        raise RuntimeError("solver")


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_is_on_its_way_when_a_run_ends_arrives(
    tmp_path: Path, disk: Disk, error: type[BaseException]
) -> None:
    before = threading.active_count()
    with pytest.raises(error), opened(tmp_path) as writer:
        put(writer, 0)
        assert disk.reached.wait(30)
        threading.Timer(0.2, disk.free.set).start()
        raise error
    assert journaled(tmp_path) == [0]
    assert threading.active_count() == before


def test_an_interrupt_while_it_waits_loses_nothing(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt), opened(tmp_path) as writer:
        put(writer, 0)
        behind = writer._behind
        assert behind is not None
        real = behind.result

        def interrupted() -> Entry:
            monkeypatch.setattr(behind, "result", real)
            disk.free.set()
            raise KeyboardInterrupt

        monkeypatch.setattr(behind, "result", interrupted)
        writer.settle()
    assert (list(writer.done), journaled(tmp_path)) == ([0], [0])


def test_the_journal_comes_after_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    real = {"fsync": os.fsync, "write": os.write}

    def name(descriptor: int) -> str:
        return Path(os.readlink(f"/proc/self/fd/{descriptor}")).name

    def fsync(descriptor: int) -> None:
        order.append(f"sync {name(descriptor)}")
        real["fsync"](descriptor)

    def write(descriptor: int, data: Any) -> int:
        order.append(f"write {name(descriptor)}")
        return int(real["write"](descriptor, data))

    with opened(tmp_path) as writer:
        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(os, "write", write)
        put(writer, 0)
        writer.settle()
    assert order == ["sync model.safetensors", f"write {JOURNAL}", f"sync {JOURNAL}"]


def test_the_journal_says_when(tmp_path: Path) -> None:
    times = iter((3.0, 4.5))
    with opened(tmp_path, clock=lambda: next(times)) as writer:
        writer.put(values(0))
        writer.finish_block(0, {}, {"solve": 2.0})
        writer.settle()
        assert writer.done[0].seconds == {
            "solve": 2.0,
            "start of write behind": 3.0,
            "end of write behind": 4.5,
        }
    with opened(tmp_path) as writer:
        assert writer.done[0].seconds["end of write behind"] == 4.5


def test_what_is_settled_is_forgotten(tmp_path: Path) -> None:
    """Healing clears what is done where nothing is worth keeping."""
    with opened(tmp_path) as writer:
        put(writer, 0)
        writer.settle()
        writer.done.clear()
    assert writer.done == {}
    assert not (tmp_path / "out.partial").exists()
