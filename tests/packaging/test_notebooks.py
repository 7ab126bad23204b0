"""The notebooks of `examples/` run from top to bottom, each in an empty folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NOTEBOOKS = sorted((EXAMPLES / "notebooks").glob("*.ipynb"))


def cells(path: Path) -> list[str]:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.fixture
def with_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``pip install ./examples/plugin`` leaves."""
    info = tmp_path / "installed" / "compress_gpfq-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: compress-gpfq\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[compress.solvers]\ngpfq = compress_gpfq.gpfq:GPFQ\n")
    monkeypatch.syspath_prepend(str(info.parent))
    monkeypatch.syspath_prepend(str(EXAMPLES / "plugin"))


@pytest.mark.usefixtures("with_plugin")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"__name__": "notebook"}
    for number, code in enumerate(cells(path)):
        exec(compile(code, f"{path.name}, code cell {number}", "exec"), names)
    assert os.listdir(folder)


def test_outputs_are_not_kept() -> None:
    for path in NOTEBOOKS:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        assert all(not cell.get("outputs") for cell in notebook["cells"]), path.name
