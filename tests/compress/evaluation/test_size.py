from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from compress.errors import UserError
from compress.evaluation.size import FolderSize, folder_size


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
