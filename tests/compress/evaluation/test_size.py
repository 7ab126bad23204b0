"""Bytes on disk: of whole folders, and of the embeddings and the head."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import compress
from compress.errors import UserError
from compress.evaluation.size import FolderSize, folder_size, outside_bytes


def test_shards_are_added_up(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3, 5)}, tmp_path / "model-00001-of-00002.safetensors", {"format": "pt"})
    save_file({"b": torch.zeros(7, dtype=torch.bfloat16)}, tmp_path / "model-00002-of-00002.safetensors")
    files = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert folder_size(tmp_path) == FolderSize(files=files, tensors=60 + 14, elements=22)


def test_a_hub_name_has_no_size() -> None:
    assert folder_size("nobody/nothing") is None


@pytest.mark.parametrize(
    "content", [b"", b"\x10", b"\xff" * 8, b"\x02\0\0\0\0\0\0\0[]", b"\x40\0\0\0\0\0\0\0{"]
)
def test_a_broken_header_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors"):
        folder_size(tmp_path)


@pytest.mark.parametrize(("family", "shared"), [("llama", 2), ("llama_tied", 1), ("gpt2", 1)])
def test_embeddings_and_head_are_counted_once(
    family: str, shared: int, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """Dense, as packed rows in three formats, and next to weights of other names."""
    source = tiny_model(family)
    positions = 128 * 64 * 2 if family == "gpt2" else 0
    dense = compress.load(source, dtype=torch.float32, device="cpu")
    assert outside_bytes(source, dense) == shared * 256 * 64 * 2 + positions
    ignore = {"embeddings": {"bits": 8}, "head": {"bits": 8}} if shared == 2 else {"embeddings": {"bits": 8}}
    for format in ("native", *(("gguf",) if family != "gpt2" else ())):
        recipe = compress.Recipe.load("w8", {**ignore, "format": "auto"} if format == "native" else {})
        if format == "gguf":
            out = compress.export(source, tmp_path / format).out
            assert outside_bytes(out, dense) == shared * 256 * 64 * 2
            continue
        out = compress.compress(source, recipe, tmp_path / format).out
        model = compress.load(out, dtype=torch.float32, device="cpu")
        found = outside_bytes(out, model)
        assert found is not None
        codes = shared * 256 * 64 + positions // 2
        assert codes <= found <= codes * 9 // 8 + 64


def test_a_folder_without_weights_has_no_embeddings(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    model = compress.load(tiny_model("llama"), dtype=torch.float32, device="cpu")
    assert outside_bytes(tmp_path, model) is None
