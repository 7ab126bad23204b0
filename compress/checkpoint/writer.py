"""The output checkpoint, written in place, block by block: it can be killed at any moment and continued.

Everything happens in ``OUT.partial``. The shards stand there at full length from the start (a full disk is found at
once, not after hours); tensors are written at the offsets that the plan gave them; a block counts once its bytes are on
disk and its line is in the journal, which a thread sees to while the next block is solved. Only a finished and verified
folder gets the name ``OUT``.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

from torch import Tensor

from compress.errors import DamagedSourceError, UserError
from compress.system.monitor import span_record

from . import beside, output
from .journal import Entry, Journal, Recorded, read_journal
from .output import JOURNAL
from .shard_files import Places, bytes_of, file_sha256
from .shards import Shard, index_json
from .unfinished import counted, refusal, what_differs

_LOG = logging.getLogger(__name__)

REPORT = "compress.json"
BEHIND = "write behind"
"""The name of the time in which a block is put on disk."""
INDEX = "model.safetensors.index.json"
OWN_FILES = frozenset({JOURNAL, output.MARK, REPORT, "report.html", "config.json", INDEX})
_NOTHING = hashlib.sha256(b"").hexdigest()


class ByteSource(Protocol):
    """What the writer needs of a source checkpoint."""

    @property
    def path(self) -> Path:
        """The folder of the checkpoint."""
        ...

    def raw_bytes(self, name: str) -> memoryview:
        """Bytes of a tensor as they are on disk."""
        ...

    def extra_files(self) -> list[Path]:
        """Files beside the weights, which an output takes along."""
        ...


@dataclass(frozen=True)
class Written:
    """What a finished output holds.

    ``entries`` are the journal's, a block each; ``shards`` file name → bytes and SHA-256; ``tensors`` name → SHA-256 of
    its bytes.
    """

    entries: tuple[Entry, ...]
    shards: Mapping[str, tuple[int, str]]
    tensors: Mapping[str, str]


T = TypeVar("T")


class Writer:
    """Fills the ``shards`` of one output folder; a context manager.

    Args:
        out: the folder to make.
        shards: where every tensor goes (:func:`compress.checkpoint.shards.lay_out`).
        source: the checkpoint that is compressed; nothing in it is touched.
        fingerprint: a hash of all that decides the output's bytes; an unfinished output of the same fingerprint is
            continued.
        settings: what the run was asked for, as plain data, so that another run can name what differs.
        overwrite: whether an existing ``out`` may be replaced, which happens when the new one is complete.
        restart: whether an unfinished output of another fingerprint may be discarded; otherwise it is refused once it holds
            a finished block.
        clock: gives the time; the journal then says from when to when each block was put on disk.
        kept: what an unfinished output holds, ahead of ``is kept`` as :func:`~compress.checkpoint.unfinished.counted` says
            it, from its folder; finished blocks if ``None``.

    Raises :class:`~compress.errors.UserError` on entering if ``out`` may not be written or the disk is full.
    """

    def __init__(
        self,
        out: str | Path,
        shards: Sequence[Shard],
        *,
        source: ByteSource,
        fingerprint: str,
        settings: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        restart: bool = False,
        clock: Callable[[], float] | None = None,
        kept: Callable[[Path], str] | None = None,
    ) -> None:
        self.out = Path(out).resolve()
        self.partial = self.out.with_name(self.out.name + ".partial")
        self.done: dict[int | str, Entry] = {}
        """The blocks that are on disk, in the order they were finished."""
        self.notes: list[str] = []
        """Sentences a person should see: what was continued, what was discarded."""
        self._shards = tuple(shards)
        self._places = Places(self.partial, self._shards)
        self._source = source
        self._fingerprint = _combine(fingerprint, self._shards)
        self._settings = dict(settings or {})
        self._overwrite = overwrite
        self._restart = restart
        self._clock = clock
        self._kept = kept
        self._thread = ThreadPoolExecutor(1, "write-behind")
        self._behind: Future[Entry] | None = None
        self._pending: dict[str, str] = {}
        self._mapped: set[str] = set()
        self._hashes = {slot.name: _NOTHING for slot in self._places.slots if not slot.nbytes}
        self._size = sum(shard.nbytes for shard in shards)
        self._created = False

    def __enter__(self) -> Writer:
        output.check_output(self.out, self._source.path, self._overwrite)
        with output.disk_errors(self.out, self._size):
            self.out.parent.mkdir(parents=True, exist_ok=True)
            output.recover(self.partial, self.out)
            output.check_output(self.out, self._source.path, self._overwrite)
            output.check_replaced(self.out)
            existed = self.partial.exists()
            self._lock = output.claim(self.partial, self.out)
            try:
                if not (existed and self._resume()):
                    self._begin()
            except BaseException:
                self._close()
                if self._created:
                    shutil.rmtree(self.partial)
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        late: Exception | None = None
        try:
            self.settle()
        except Exception as failure:
            late = failure
        self._close()
        self._leave(late if error is None else error)
        if late is not None and error is None:
            raise late

    def _leave(self, error: BaseException | None) -> None:
        """Keep the unfinished output, or delete it, after what a run ended with."""
        if not self.partial.exists():
            return
        # A finished block is worth hours, whatever went wrong after it, but not over a source that has to be replaced.
        if not self.done or isinstance(error, DamagedSourceError):
            if self._created or self.done:
                shutil.rmtree(self.partial)
        elif isinstance(error, UserError):
            sentence = str(error).rstrip(".")
            kept = counted(self.done) if self._kept is None else self._kept(self.partial)
            raise type(error)(
                f"{sentence}. {kept[:1].upper()}{kept[1:]} kept in {self.partial}: the same command goes on from there; "
                "with other options or another model it needs --restart."
            ) from error

    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Write tensors, by their full names, where the plan put them."""
        with output.disk_errors(self.out, self._size):
            for name, tensor in tensors.items():
                spec = self._places.slot(name).spec
                if tuple(tensor.shape) != spec.shape or tensor.dtype != spec.dtype:
                    raise ValueError(
                        f"{name}: the plan has {spec.dtype} {list(spec.shape)}, "
                        f"not {tensor.dtype} {list(tensor.shape)}"
                    )
                self._pending[name] = self._places.write(name, bytes_of(tensor))

    def mapped(self, name: str) -> Tensor:
        """The place of tensor ``name`` itself: what is written to this tensor is written to the file.

        For a tensor of the source that holds several weights; it begins as a copy of the source's, and belongs to the
        block that is finished next.
        """
        if name not in self._mapped:
            self.pass_through([name])
            self._mapped.add(name)
        return self._places.map(name)

    def region(self, name: str) -> Tensor:
        """As :meth:`mapped`, for a tensor that the source does not have: it begins as it is in the file."""
        self._mapped.add(name)
        return self._places.map(name)

    def finish_block(
        self, block: int | str, records: Mapping[str, Any], seconds: Mapping[str, float] | None = None
    ) -> None:
        """Everything since the last call belongs to ``block`` and is complete; survives a crash once :meth:`settle` returns.

        It is put on disk in the background, after the block before; a caller that writes on waits for nothing else.

        ``records`` are the figures of the block's weights, plain data that depends on nothing but the inputs;
        ``seconds`` are the times, kept apart because they do not.
        """
        self.settle()
        entry = Entry(block, dict(records), self._pending, dict(seconds or {}))
        self._behind = self._thread.submit(self._record, entry, self._places.settling())
        self._pending = {}
        self._mapped.clear()

    def settle(self) -> None:
        """Wait until the block that was finished last is on disk and counts.

        Raises:
            UserError: it could not be written.
        """
        if self._behind is None:
            return
        entry = self._behind.result()
        self.done[entry.block] = entry
        self._hashes |= entry.tensors
        # Last: after an interrupt before it is waited for again.
        self._behind = None

    def _record(self, entry: Entry, settle: Callable[[], dict[str, str]]) -> Entry:
        """Put a block on disk and then into the journal; runs in the thread."""
        began = 0.0 if self._clock is None else self._clock()
        with output.disk_errors(self.out, self._size):
            entry = replace(entry, tensors={**entry.tensors, **settle()})
            if self._clock is not None:
                entry = replace(entry, seconds={**entry.seconds, **span_record(BEHIND, began, self._clock())})
            self._journal.append(entry)
        return entry

    def read(self, name: str) -> Tensor:
        """A copy of a tensor that was written before, in this run or in the one it continues."""
        if name not in self._pending and name not in self._mapped and name not in self._hashes:
            self.settle()
            if name not in self._hashes:
                raise ValueError(f"{name} has not been written yet")
        return self._places.read(name)

    def pass_through(self, names: Iterable[str], progress: Callable[[int], None] | None = None) -> None:
        """Copy tensors of the source byte for byte, in small pieces; ``progress`` is told the bytes of each."""
        with output.disk_errors(self.out, self._size):
            for name in names:
                self._hashes[name] = self._places.write(name, self._source.raw_bytes(name), progress)

    def convert(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Write tensors that belong to no block, by their full names: they are made anew when a run is continued."""
        for name, tensor in tensors:
            self.put({name: tensor})
            self._hashes[name] = self._pending.pop(name)

    def finish(
        self,
        config: Mapping[str, Any],
        describe: Callable[[Written], T],
        *,
        files: Callable[[T], Mapping[str, str]],
        verify: Callable[[Path], object] | None = None,
    ) -> tuple[Path, T]:
        """Complete the folder, verify it, and give it its name.

        Args:
            config: the contents of ``config.json``.
            describe: makes the report from what was written.
            files: the text files beside the weights that hold the report, by name.
            verify: called with the complete folder before it is renamed; what it raises stops the run.

        Returns:
            The finished folder and the report.
        """
        self.settle()
        missing = sorted({slot.name for slot in self._places.slots} - self._hashes.keys())
        if missing or self._pending:
            raise RuntimeError(
                f"{len(missing) + len(self._pending)} planned tensors were not finished: {missing[:3]}"
            )
        with output.disk_errors(self.out, self._size):
            beside.copy_files(self._source.extra_files(), self._source.path, self.partial, but=OWN_FILES)
            if len(self._shards) > 1:
                beside.write_json(self.partial / INDEX, index_json(self._shards))
            _LOG.info("hashing the files")
            written = self._written()
            report = describe(written)
            self._write_texts(files(report))
            self._places.settle()
            # From here on the folder looks like a checkpoint: this comes last.
            beside.write_json(self.partial / "config.json", config)
            try:
                if verify is not None:
                    verify(self.partial)
                    # Again, for what is only known now: how long the verification took.
                    report = describe(written)
                    self._write_texts(files(report))
            except BaseException:
                (self.partial / "config.json").unlink()
                raise
            output.sync(self.partial)
            output.take_name(self.partial, self.out)
        return self.out, report

    def _begin(self) -> None:
        self._created = True
        output.empty(self.partial)
        self._places.create()
        self._journal = Journal(self.partial / JOURNAL)
        self._journal.begin(self._fingerprint, self._settings)

    def _resume(self) -> bool:
        """Take over an unfinished output; false if it is begun anew.

        Raises:
            UserError: it is another run's, holds finished blocks, and may not be discarded.
        """
        path = self.partial / JOURNAL
        recorded = read_journal(path)
        if recorded.fingerprint != self._fingerprint or not self._places.stand():
            self._discard(recorded)
            return False
        for name in ("config.json", REPORT, INDEX):
            (self.partial / name).unlink(missing_ok=True)
        _LOG.info("hashing the finished blocks of %s", self.partial)
        intact = self._intact(recorded.entries)
        self._journal = Journal(path, recorded.ends[len(intact)])
        for entry in intact:
            self.done[entry.block] = entry
            self._hashes.update(entry.tensors)
        if self._kept is None:
            self.notes.append(f"continuing {self.partial.name}: {counted(self.done)} done")
        if len(intact) < len(recorded.entries):
            self.notes.append(
                f"block {recorded.entries[len(intact)].block} of {self.partial.name} is damaged: solved again"
            )
        return True

    def _discard(self, recorded: Recorded) -> None:
        what = what_differs(self.partial, recorded, self._fingerprint, self._settings)
        if what and not self._restart:
            raise refusal(self.partial, (entry.block for entry in recorded.entries), what)
        if what:
            self.notes.append(f"{self.partial.name} is of another run ({what}): discarded")

    def _intact(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        """The entries before the first whose tensors are not on disk as it says."""
        known = {slot.name for slot in self._places.slots}
        for count, entry in enumerate(entries):
            for name, expected in entry.tensors.items():
                if name not in known or self._places.sha256(name) != expected:
                    return entries[:count]
        return entries

    def _written(self) -> Written:
        return Written(
            entries=tuple(self.done.values()),
            shards={s.filename: (s.nbytes, file_sha256(self.partial / s.filename)) for s in self._shards},
            tensors=dict(sorted(self._hashes.items())),
        )

    def _write_texts(self, files: Mapping[str, str]) -> None:
        for name, text in files.items():
            beside.write_text(self.partial / name, text)

    def _close(self) -> None:
        self._thread.shutdown()
        self._places.close()
        if hasattr(self, "_journal"):
            self._journal.close()
        with contextlib.suppress(OSError):
            os.close(self._lock)


def _combine(fingerprint: str, shards: Sequence[Shard]) -> str:
    digest = hashlib.sha256(fingerprint.encode())
    for shard in shards:
        digest.update(shard.filename.encode() + shard.header)
    return digest.hexdigest()
