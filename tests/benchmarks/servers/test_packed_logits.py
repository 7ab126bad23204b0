"""The comparison of packed checkpoints in other programs: its schemes, its figures, and what a refusal leaves."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.servers.packed_logits import asked, compared, schemes


def test_schemes_are_recipes_with_names_of_their_own() -> None:
    found = schemes(64)
    names = [scheme.name for scheme in found]
    assert len(set(names)) == len(names) == 2 * (4 + 1 + 6) + 3
    assert {"gptq-3-asymmetric", "awq-4-symmetric", "mlx-8-asymmetric", "mlx-nvfp4"} <= set(names)
    targets = {scheme.format: scheme.recipe().steps[0].targets for scheme in found}
    assert "embeddings" in targets["mlx"]
    assert targets["gptq"] == targets["awq"] == ("linear",)


def test_figures() -> None:
    ours = np.log(np.array([[[0.5, 0.5], [0.8, 0.2]]]))
    theirs = np.log(np.array([[[0.25, 0.75], [0.8, 0.2]]]))
    kl = 0.5 * (0.5 * np.log(2) + 0.5 * np.log(0.5 / 0.75))
    figures = compared(ours, theirs)
    assert figures["kl"] == pytest.approx(kl)
    assert figures["largest"] == pytest.approx(np.log(2))
    assert figures["top1"] == 0.5
    assert compared(ours, "ValueError: no") == {"refused": "ValueError: no"}


def test_a_program_answers_or_says_why_not(tmp_path: Path) -> None:
    out = tmp_path / "out.npy"
    made = f"import numpy, sys; numpy.save({str(out)!r}, numpy.ones((1, 2)))"
    assert asked([sys.executable, "-c", made], out).tolist() == [[1.0, 1.0]]
    assert asked([sys.executable, "-c", "raise SystemExit('not this one')"], out) == "not this one"
