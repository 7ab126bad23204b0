"""A written output is held against its own report: sizes always, hashes on demand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import compress as api
from compress.checkpoint.integrity import check_hashes, check_sizes
from compress.checkpoint.source import open_source
from compress.errors import UserError


@pytest.fixture
def out(tiny_model: Callable[..., Path], tmp_path: Path) -> Path:
    settings = {"quantize.group_size": 32}
    return api.compress(tiny_model("llama"), "w4-rtn", tmp_path / "out", settings=settings, device="cpu").out


def test_a_sound_output_and_a_flipped_bit(out: Path, tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    api.load(out, check=True)
    data = bytearray((out / "model.safetensors").read_bytes())
    data[-7] ^= 1
    (out / "model.safetensors").write_bytes(data)
    api.load(out)
    with pytest.raises(UserError, match="was changed after it was written"):
        api.load(out, check=True)
    (tmp_path / "text.txt").write_text("words " * 50)
    with pytest.raises(UserError, match="was changed after it was written"):
        api.evaluate(tiny_model("llama"), [out], text=tmp_path / "text.txt", check=True)


def test_a_file_of_another_size_is_never_loaded(out: Path) -> None:
    report = json.loads((out / "compress.json").read_text())
    report["shards"][0]["bytes"] += 1
    (out / "compress.json").write_text(json.dumps(report))
    with pytest.raises(UserError, match="written were"):
        api.load(out)


def test_tensors_that_only_one_side_knows(out: Path) -> None:
    report = json.loads((out / "compress.json").read_text())
    report["tensors"]["x"] = "0"
    (out / "compress.json").write_text(json.dumps(report))
    with pytest.raises(UserError, match="tensor x is not both"):
        check_hashes(open_source(out))


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"tensors": 3, "shards": 3}', '{"shards": [3]}'])
def test_without_hashes_there_is_nothing_to_check(out: Path, content: str | None) -> None:
    (out / "compress.json").unlink()
    if content is not None:
        (out / "compress.json").write_text(content)
    source = open_source(out)
    check_sizes(source)
    with pytest.raises(UserError, match="no compress.json with hashes"):
        check_hashes(source)
