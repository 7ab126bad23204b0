"""The writer: exact, atomic, and the same whether it was interrupted or not."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from compress_kernels.layouts import TensorSpec
from safetensors.torch import load_file
from torch import Tensor

from compress.checkpoint.output import DiskFull
from compress.checkpoint.shards import Shard, lay_out
from compress.checkpoint.writer import Writer, Written
from compress.errors import DamagedSourceError, UserError

BLOCKS = 4


@dataclass(frozen=True)
class FakeSource:
    """A folder with some files to carry over, and tensors that are made up."""

    path: Path

    def raw_bytes(self, name: str) -> memoryview:
        return _values(name, (64,), torch.bfloat16).view(torch.uint8).numpy().data

    def extra_files(self) -> list[Path]:
        return [self.path / "tokenizer.json", self.path / "sub" / "extra.txt"]


def _values(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
    return torch.randint(-100, 100, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _block(index: int) -> dict[str, Tensor]:
    return {
        f"blocks.{index}.a.weight_packed": _values(f"p{index}", (16, 4), torch.int32),
        f"blocks.{index}.a.weight_scale": _values(f"s{index}", (16, 3), torch.bfloat16),
        f"blocks.{index}.a.weight": torch.empty(0, dtype=torch.bfloat16),
        f"blocks.{index}.b.weight_packed": _values(f"q{index}", (200, 40), torch.int32),
    }


PASSED = ("embed.weight", "norm.weight")
FUSED = "blocks.0.fused"


def _shards(limit: int = 40_000) -> tuple[Shard, ...]:
    tensors = [(name, TensorSpec((64,), torch.bfloat16)) for name in (*PASSED, FUSED)]
    for index in range(BLOCKS):
        tensors += [(name, TensorSpec(tuple(t.shape), t.dtype)) for name, t in _block(index).items()]
    return lay_out(tensors, limit)


@pytest.fixture
def source(tmp_path: Path) -> FakeSource:
    folder = tmp_path / "source"
    (folder / "sub").mkdir(parents=True)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "sub" / "extra.txt").write_text("carry me\n")
    return FakeSource(folder)


def _describe(written: Written) -> dict[str, Any]:
    return {
        "weights": {name: record for entry in written.entries for name, record in entry.records.items()},
        "shards": written.shards,
        "tensors": written.tensors,
        "timing": {str(entry.block): entry.seconds for entry in written.entries},
    }


def _files(report: dict[str, Any]) -> dict[str, str]:
    return {"compress.json": json.dumps(report), "report.html": "<p>"}


def _run(
    source: FakeSource,
    out: Path,
    *,
    overwrite: bool = False,
    fingerprint: str = "f",
    settings: dict[str, Any] | None = None,
    restart: bool = False,
    verify: Callable[[Path], object] | None = None,
    stop_after: int = BLOCKS,
) -> Writer:
    """A run with a made-up solver; asks for the tensors of finished blocks back, as a resumed run does."""
    options: dict[str, Any] = {"settings": settings, "overwrite": overwrite, "restart": restart}
    with Writer(out, _shards(), source=source, fingerprint=fingerprint, **options) as writer:
        for index in range(BLOCKS):
            if index == stop_after:
                raise KeyboardInterrupt
            if index in writer.done:
                assert all(torch.equal(writer.read(name), tensor) for name, tensor in _block(index).items())
                continue
            if index == 0:
                writer.mapped(FUSED)[:32] = 1
            writer.put(_block(index))
            writer.finish_block(index, {f"blocks.{index}.a": {"error": 0.1 * index}}, {"solve": index / 7})
        writer.pass_through(PASSED)
        writer.finish({"model_type": "fake"}, _describe, files=_files, verify=verify)
    return writer


def _contents(out: Path) -> dict[str, str]:
    """Every file's bytes, but for the times."""
    result = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        data = path.read_bytes()
        if path.name == "compress.json":
            report = json.loads(data)
            del report["timing"]
            data = json.dumps(report).encode()
        result[str(path.relative_to(out))] = hashlib.sha256(data).hexdigest()
    return result


def _in_child(action: Callable[[], int | None]) -> int:
    """Run ``action`` in a forked process, which exits with what it returns; the wait status."""
    pid = os.fork()
    if pid == 0:
        try:
            status = action()
        except BaseException:
            traceback.print_exc()
            os._exit(255)
        os._exit(status or 0)
    return os.waitpid(pid, 0)[1]


_CALLS = ("pwrite", "fsync", "write", "rename", "unlink", "posix_fallocate")


def _die_at(limit: int) -> Callable[[], int]:
    """Replace the system calls that change the disk: the ``limit``-th kills the process. Returns a count of them."""
    count = 0
    real: dict[str, Any] = {name: getattr(os, name) for name in _CALLS}

    def wrap(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == limit:
                os.kill(os.getpid(), signal.SIGKILL)
            return real[name](*args, **kwargs)

        return call

    for name in _CALLS:
        setattr(os, name, wrap(name))
    return lambda: count


def _calls(source: FakeSource, out: Path, die_at: int = 0) -> int | None:
    """Run in a process that dies at its ``die_at``-th system call; how many it took, or ``None`` if it died."""

    def action() -> int:
        count = _die_at(die_at)
        _run(source, out, overwrite=True)
        return count()

    status = _in_child(action)
    if os.WIFSIGNALED(status):
        return None
    assert 0 < os.WEXITSTATUS(status) < 255
    return os.WEXITSTATUS(status)


def _remove(out: Path) -> None:
    for path in sorted(out.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    out.rmdir()


def test_a_finished_folder_holds_everything(tmp_path: Path, source: FakeSource) -> None:
    out = tmp_path / "out"
    _run(source, out)
    tensors = {name: t for path in out.glob("*.safetensors") for name, t in load_file(path).items()}
    expected = {name: t for index in range(BLOCKS) for name, t in _block(index).items()}
    for name, tensor in expected.items():
        assert torch.equal(tensors[name], tensor), name
    for name in PASSED:
        assert tensors[name].view(torch.uint8).numpy().tobytes() == bytes(source.raw_bytes(name))
    fused = _values(FUSED, (64,), torch.bfloat16)
    assert torch.equal(tensors[FUSED], torch.cat([torch.ones(32, dtype=torch.bfloat16), fused[32:]]))
    assert set(tensors) == {*expected, *PASSED, FUSED}
    assert {path.name: path.stat().st_size for path in out.glob("*.safetensors")} == {
        shard.filename: shard.nbytes for shard in _shards()
    }
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(tensors)
    report = json.loads((out / "compress.json").read_text())
    assert report["weights"]["blocks.1.a"] == {"error": 0.1}
    assert report["timing"]["3"] == {"solve": 3 / 7}
    for path in out.glob("*.safetensors"):
        data = path.read_bytes()
        assert report["shards"][path.name] == [len(data), hashlib.sha256(data).hexdigest()]
    for name, tensor in tensors.items():
        raw = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        assert report["tensors"][name] == hashlib.sha256(raw).hexdigest()
    assert (out / "sub" / "extra.txt").read_text() == "carry me\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]
    assert not (out / "journal.jsonl").exists()


def test_killed_at_any_moment_it_continues_to_the_same_bytes(tmp_path: Path, source: FakeSource) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    total = _calls(source, whole)
    assert total is not None
    expected = _contents(whole)
    for moment in range(15):
        assert _calls(source, out, die_at=1 + moment * (total - 5) // 14) is None
        assert not out.exists()
        _run(source, out)
        assert _contents(out) == expected
        assert not (tmp_path / "out.partial").exists()
        _remove(out)


def test_killed_again_and_again_it_still_arrives(tmp_path: Path, source: FakeSource) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    _run(source, whole)
    deaths = 0
    while _calls(source, out, die_at=16 + 4 * deaths) is None:
        deaths += 1
    assert 3 <= deaths < 30
    assert _contents(out) == _contents(whole)


def test_killed_while_overwriting_one_of_the_two_outputs_is_always_there(
    tmp_path: Path, source: FakeSource
) -> None:
    whole, out, aside = tmp_path / "whole", tmp_path / "out", tmp_path / "out.replaced"
    total = _calls(source, whole)
    assert total is not None
    for before_end in range(7):
        out.mkdir()
        (out / "config.json").write_text("old")
        assert _calls(source, out, die_at=total - before_end) is None
        assert any((path / "config.json").exists() for path in (out, aside))
        _run(source, out, overwrite=True)
        assert _contents(out) == _contents(whole)
        assert not aside.exists()
        _remove(out)


def test_an_interrupted_run_is_continued(tmp_path: Path, source: FakeSource) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        _run(source, out, stop_after=2)
    assert not out.exists()
    writer = _run(source, out)
    assert list(writer.done) == [0, 1, 2, 3]
    assert writer.notes == ["continuing out.partial: 2 blocks are done"]


def test_interrupted_before_the_first_block_nothing_stays(tmp_path: Path, source: FakeSource) -> None:
    with pytest.raises(KeyboardInterrupt):
        _run(source, tmp_path / "out", stop_after=0)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_an_unfinished_output_of_another_run_is_refused_or_discarded_aloud(
    tmp_path: Path, source: FakeSource
) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        _run(source, out, stop_after=2, settings={"recipe": {"bits": 4}, "seed": 0})
    before = _contents(tmp_path / "out.partial")
    other = {"fingerprint": "other", "settings": {"recipe": {"bits": 3}, "seed": 0}}
    with pytest.raises(
        UserError, match=r"2 blocks are done; what differs: recipe\.bits \(4, now 3\)\).*--restart"
    ):
        _run(source, out, **other)
    assert _contents(tmp_path / "out.partial") == before
    writer = _run(source, out, restart=True, **other)
    assert "recipe.bits (4, now 3)" in writer.notes[0]
    assert "discarded" in writer.notes[0]
    _run(source, tmp_path / "whole", **other)
    assert _contents(out) == _contents(tmp_path / "whole")


def test_without_a_finished_block_there_is_nothing_to_refuse(tmp_path: Path, source: FakeSource) -> None:
    out = tmp_path / "out"

    def killed() -> None:
        with Writer(out, _shards(), source=source, fingerprint="f"):
            os._exit(0)

    assert _in_child(killed) == 0
    assert (tmp_path / "out.partial").is_dir()
    assert _run(source, out, fingerprint="other").notes == []


def test_an_error_of_the_person_keeps_finished_blocks_and_says_so(tmp_path: Path, source: FakeSource) -> None:
    out = tmp_path / "out"

    def refuse(folder: Path) -> None:
        raise UserError("A stray file is there.")

    sentence = (
        r"stray file is there\. 4 blocks are kept in .*out\.partial: the same command goes on from there"
    )
    with pytest.raises(UserError, match=sentence):
        _run(source, out, verify=refuse)
    writer = _run(source, out)
    assert "4 blocks are done" in writer.notes[0]
    _run(source, tmp_path / "whole")
    assert _contents(out) == _contents(tmp_path / "whole")


def test_an_error_of_the_source_keeps_nothing(tmp_path: Path, source: FakeSource) -> None:
    def refuse(folder: Path) -> None:
        raise DamagedSourceError("Tensor a holds NaN.")

    for _ in range(2):
        with pytest.raises(DamagedSourceError, match=r"^Tensor a holds NaN\.$"):
            _run(source, tmp_path / "out", verify=refuse)
        assert not list(tmp_path.glob("out*"))
    with pytest.raises(KeyboardInterrupt):  # also of a run that is continued
        _run(source, tmp_path / "out", stop_after=3)
    with pytest.raises(DamagedSourceError):
        _run(source, tmp_path / "out", verify=refuse)
    assert not list(tmp_path.glob("out*"))


def test_a_torn_journal_line_and_a_damaged_block_are_solved_again(tmp_path: Path, source: FakeSource) -> None:
    whole, out, partial = tmp_path / "whole", tmp_path / "out", tmp_path / "out.partial"
    _run(source, whole)
    with pytest.raises(KeyboardInterrupt):
        _run(source, out, stop_after=3)
    journal = partial / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])
    shard, slot = next(
        (s, slot) for s in _shards() for slot in s.slots if slot.name == "blocks.1.b.weight_packed"
    )
    with (partial / shard.filename).open("r+b") as file:
        file.seek(slot.offset)
        file.write(b"\xff")
    writer = _run(source, out)
    assert "block 1" in writer.notes[1]
    assert _contents(out) == _contents(whole)


def test_an_existing_output_is_left_alone(tmp_path: Path, source: FakeSource) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("mine")
    with pytest.raises(UserError, match="already exists"):
        _run(source, out)
    assert (out / "config.json").read_text() == "mine"
    assert not (tmp_path / "out.partial").exists()


def test_overwriting_replaces_only_when_the_new_one_is_complete(tmp_path: Path, source: FakeSource) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("old")

    def refuse(folder: Path) -> None:
        assert (folder / "config.json").exists()
        raise UserError("not good")

    with pytest.raises(UserError, match="not good"):
        _run(source, out, overwrite=True, verify=refuse)
    assert [path.name for path in out.iterdir()] == ["config.json"]
    assert not (tmp_path / "out.partial" / "config.json").exists()
    _run(source, out, overwrite=True)
    assert json.loads((out / "config.json").read_text()) == {"model_type": "fake"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_a_folder_that_is_no_checkpoint_is_never_overwritten(tmp_path: Path, source: FakeSource) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("ten years")
    with pytest.raises(UserError, match="not a checkpoint"):
        _run(source, home, overwrite=True)
    assert (home / "thesis.tex").exists()


@pytest.mark.parametrize("place", [".", "inside", ".."])
def test_the_output_may_not_be_in_the_source_nor_around_it(source: FakeSource, place: str) -> None:
    with pytest.raises(UserError, match="apart from the source"):
        _run(source, source.path / place, overwrite=True)
    assert (source.path / "tokenizer.json").exists()


def test_two_runs_into_one_output_are_refused(tmp_path: Path, source: FakeSource) -> None:
    with (
        Writer(tmp_path / "out", _shards(), source=source, fingerprint="f") as first,
        pytest.raises(UserError, match="another run"),
        Writer(tmp_path / "out", _shards(), source=source, fingerprint="f"),
    ):
        pass
    assert first.done == {}


def test_a_full_disk_is_found_before_any_work(tmp_path: Path, source: FakeSource) -> None:
    out = tmp_path / "out"

    def action() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        with pytest.raises(DiskFull, match=r"no room for the output, which takes 1\d\d kB"):
            _run(source, out)

    assert _in_child(action) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_disk_that_fills_up_later_leaves_an_earlier_output(tmp_path: Path, source: FakeSource) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("old")
    largest = max(shard.nbytes for shard in _shards())
    (source.path / "tokenizer.json").write_text(" " * (2 * largest))

    def action() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
        with pytest.raises(DiskFull):
            _run(source, out, overwrite=True)

    assert _in_child(action) == 0
    assert (out / "config.json").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.partial", "source"]
    (source.path / "tokenizer.json").write_text("{}")
    assert "4 blocks are done" in _run(source, out, overwrite=True).notes[0]


def test_what_the_plan_does_not_say_is_not_written(tmp_path: Path, source: FakeSource) -> None:
    with Writer(tmp_path / "out", _shards(), source=source, fingerprint="f") as writer:
        with pytest.raises(ValueError, match="not in the plan"):
            writer.put({"stranger": torch.zeros(1)})
        with pytest.raises(ValueError, match="the plan has"):
            writer.put({"blocks.0.a.weight_scale": torch.zeros(16, 3)})
        with pytest.raises(ValueError, match="not been written"):
            writer.read("blocks.0.a.weight_scale")
        with pytest.raises(RuntimeError, match="were not finished"):
            writer.finish({}, _describe, files=_files)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_only_looks_unfinished_is_left_alone(tmp_path: Path, source: FakeSource) -> None:
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="in the way"):
        _run(source, tmp_path / "out")
    assert (partial / "notes.txt").read_text() == "mine"
