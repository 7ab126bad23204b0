from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import compress
from compress.checkpoint.cold import folder as module
from compress.checkpoint.cold import pack, unpack
from compress.checkpoint.cold.file import MARK
from compress.errors import UserError


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """One of every kind of tensor."""
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "sub" / "note.txt").write_text("note")
    draw = torch.Generator().manual_seed(0)
    codes = (torch.randn(64, 512, generator=draw) * 30).round().clamp(-128, 127)
    tensors = {
        "codes": codes.to(torch.int8),
        "words": torch.randint(0, 1 << 30, (8, 5), generator=draw).to(torch.int32),
        "bf16": torch.randn(64, 96, generator=draw).bfloat16(),
        "fp32": torch.randn(7, generator=draw),
        "fp8": torch.randn(4, 8, generator=draw).to(torch.float8_e4m3fn),
        "scalar": torch.tensor(3.0),
        "none": torch.zeros(0, 4, dtype=torch.int32),
        "zero": torch.zeros(300, dtype=torch.int64),
        "truth": torch.tensor([True, False, True]),
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_every_byte_comes_back(checkpoint: Path, tmp_path: Path) -> None:
    made = pack(checkpoint, tmp_path / "cold")
    assert unpack(made.out, tmp_path / "again") == tmp_path / "again"
    assert files(tmp_path / "again") == files(checkpoint)
    before = (checkpoint / "model.safetensors").stat().st_size
    after = (made.out / "model.safetensors.cold").stat().st_size
    assert (made.before, made.after) == (before, after)
    assert after < 0.85 * before
    assert made.bound < after
    assert files(made.out)["sub/note.txt"] == b"note"


def test_an_output_of_ours_packs_to_its_entropy(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    dense = tiny_model("llama", hidden_size=128, intermediate_size=512)
    compress.compress(dense, "w4-rtn", tmp_path / "out")
    made = compress.pack(tmp_path / "out", tmp_path / "cold")
    assert made.after < 0.97 * made.before
    compress.unpack(made.out, tmp_path / "again")
    assert files(tmp_path / "again") == files(tmp_path / "out")


@pytest.mark.parametrize("place", ["mark", "length", "json", "data", "end"])
def test_damage_is_noticed_and_leaves_nothing(checkpoint: Path, tmp_path: Path, place: str) -> None:
    packed = pack(checkpoint, tmp_path / "cold").out / "model.safetensors.cold"
    data = bytearray(packed.read_bytes())
    where = {"mark": 2, "length": len(MARK), "json": len(MARK) + 20, "data": len(data) - 700}
    if place == "end":
        del data[-1]
    else:
        data[where[place]] ^= 0x55
    packed.write_bytes(data)
    with pytest.raises(UserError, match="damaged|no file that"):
        unpack(tmp_path / "cold", tmp_path / "again")
    assert not (tmp_path / "again").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cold", "model"]


def test_what_cannot_be_done_is_said(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="already exists"):
        pack(checkpoint, checkpoint)
    with pytest.raises(UserError, match="no folder"):
        pack(tmp_path / "missing", tmp_path / "out")
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match=r"no config\.json"):
        pack(tmp_path / "other", tmp_path / "out")
    with pytest.raises(UserError, match=r"no \.cold file"):
        unpack(checkpoint, tmp_path / "out")


def test_a_failure_leaves_no_folder(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "pack_file", fail)
    with pytest.raises(UserError, match="No space left"):
        pack(checkpoint, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_the_header_is_plain_json(checkpoint: Path, tmp_path: Path) -> None:
    packed = (pack(checkpoint, tmp_path / "cold").out / "model.safetensors.cold").read_bytes()
    length = int.from_bytes(packed[len(MARK) : len(MARK) + 8], "little")
    head = json.loads(packed[len(MARK) + 8 :][:length])
    assert {entry["name"] for entry in head["tensors"]} >= {"codes", "words", "bf16"}
