"""`compress heal` on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from compress_cli.main import app
from typer.testing import CliRunner

import compress

SHORT = [
    *("--tokens", "256", "--rate", "0.02", "--set", "length=32", "--set", "heal.batch=2"),
    *("--set", "holdout=2", "--set", "evaluations=2"),
]


@pytest.fixture
def compressed(tiny_model: Callable[..., Path], tmp_path: Path) -> tuple[Path, Path, Path]:
    """A compressed folder, its source and a text."""
    source, text, out = tiny_model("llama"), tmp_path / "text.txt", tmp_path / "w4"
    text.write_text("the quick brown fox jumps over the lazy dog " * 60)
    compress.compress(source, "w4-rtn", out, settings={"quantize.group_size": 64, "quantize.bits": 2})
    return out, source, text


def test_it_says_what_it_brought(compressed: tuple[Path, Path, Path], tmp_path: Path) -> None:
    out, source, text = map(str, compressed)
    new = tmp_path / "new"
    arguments = ["heal", out, "--source", source, "--data", text, "-o", str(new), *SHORT]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "is healed and verified: held-out KL" in result.output
    assert "heal 4/4" in result.output
    assert (new / "report.html").read_text().count("<h2>Healing</h2>") == 1
    shown = CliRunner().invoke(app, ["heal", out, "--source", source, "--data", text, "--json", *SHORT])
    assert json.loads(shown.stdout)["report"]["healing"]["steps"] == 4


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--train", "scale"], "did you mean 'scales'"),
        (["--set", "tokns=5"], "heal: unknown key 'tokns'"),
        (["-r", "w4-rtn"], "has no 'heal'"),
        (["--data", "nowhere.txt"], "no text file"),
    ],
)
def test_a_mistake_is_one_sentence_and_writes_nothing(
    compressed: tuple[Path, Path, Path], tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    out, source, text = map(str, compressed)
    before = sorted(path.name for path in tmp_path.iterdir())
    data = [] if "--data" in arguments else ["--data", text]
    result = CliRunner().invoke(app, ["heal", out, "--source", source, *data, *SHORT, *arguments])
    assert result.exit_code == 2
    assert sentence in " ".join(result.output.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == before
