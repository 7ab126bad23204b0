"""What a report says of a source that was quantized already."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from compress.report.source_notes import source_notes


def test_only_a_quantized_source_has_a_note() -> None:
    dense: Any = SimpleNamespace(stored_as="")
    assert list(source_notes(dense)) == []
    quantized: Any = SimpleNamespace(stored_as="GPTQ, 4 bits, groups of 128")
    (note,) = source_notes(quantized)
    assert "(GPTQ, 4 bits, groups of 128)" in note
    assert "measured against the decoded weights" in note
