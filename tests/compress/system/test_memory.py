"""What the system says of its memory."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch

from compress.system import memory


def test_it_is_what_other_tools_say() -> None:
    found = memory.available_memory(torch.device("cpu"))
    assert found == pytest.approx(psutil.virtual_memory().available, rel=0.2)


def test_a_system_that_does_not_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "absent")
    found = memory.available_memory(torch.device("cpu"))
    assert found == pytest.approx(psutil.virtual_memory().total / 2, rel=0.05)
