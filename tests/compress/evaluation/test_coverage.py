from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from compress.evaluation.coverage import coverage, coverage_notes
from compress.linalg.leverage import FOREIGN


def test_a_text_of_other_tokens_is_foreign(models: SimpleNamespace, dense: Path) -> None:
    model = models.load(dense, dtype=torch.float32, device=torch.device("cpu")).eval()
    draw = torch.Generator().manual_seed(0)
    few, same = (torch.randint(10, 16, (8, 64), generator=draw) for _ in range(2))
    many = torch.randint(0, 250, (8, 64), generator=draw)
    assert coverage(model, few, few) == pytest.approx(1.0)
    assert coverage(model, few, same) < FOREIGN
    assert coverage(model, few, many) > FOREIGN
    notes = coverage_notes(model, few, "calibration", [("same", same), ("other", many)])
    assert "same has 1." in notes[0]
    assert notes[1].endswith("another domain.")
    assert len(notes) == 2
    assert "foreign to the calibration" in coverage_notes(model, few, "calibration", [("other", many)])[-1]
    assert "No text is of another domain" in coverage_notes(model, few, "calibration", [("same", same)])[-1]
