"""A loaded model leaves behind what it needs alone; what it computes is held in the tests of what it consists of."""

from __future__ import annotations

import pytest

from compress.runtime import load as module


def test_what_loading_took_besides_is_given_back_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fill = module.load_block
    monkeypatch.setattr(module, "load_block", lambda *a, **k: (fill(*a, **k), done.append("block"))[0])
    monkeypatch.setattr(module, "return_free_memory", lambda: done.append("returned"))
    module.load("embedded")
    assert done[-1] == "returned"
    assert done.count("returned") == 1
    assert "block" in done
