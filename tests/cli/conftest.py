"""What the tests of commands share."""

from __future__ import annotations

import pytest
from compress_cli import status

from compress.verification import fresh_process


@pytest.fixture(autouse=True)
def no_fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands start no process of their own unless they are asked to: it imports torch and transformers anew."""
    monkeypatch.setattr(fresh_process, "LARGEST", 0)


@pytest.fixture(autouse=True)
def no_status(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command prints on stderr does not depend on how busy the machine is."""
    monkeypatch.setattr(status, "FIRST", 1e9)
