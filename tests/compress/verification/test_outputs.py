"""A router that stands between two experts follows the last bit: no difference of the checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from compress import compress
from compress.checkpoint.source import open_source
from compress.errors import UserError
from compress.verification import outputs as check


def test_fp32_decides_where_half_precision_differs(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, source = tmp_path / "out", open_source(tiny_model("llama"))
    compress(tiny_model("llama"), "w8", out)
    seen: list[torch.dtype] = []

    def tied(folder: Path, source: object, dtype: torch.dtype) -> str | None:
        seen.append(dtype)
        return None if dtype == torch.float32 else "block 0 (relative error 0.1)"

    monkeypatch.setattr(check, "_difference", tied)
    check.check_logits(out, source)
    assert seen == [torch.bfloat16, torch.float32]
    monkeypatch.setattr(check, "_difference", lambda *_: "block 0 (relative error 0.1)")
    with pytest.raises(UserError, match="block 0"):
        check.check_logits(out, source)
