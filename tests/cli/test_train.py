"""`compress train`: a checkpoint and what it says of it; mistakes end in a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from compress_cli.main import app
from typer.testing import CliRunner

Tiny = Callable[..., Path]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog. " * 200)
    return path


def test_a_checkpoint_and_its_loss(tiny_model: Tiny, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [
        "train",
        "lost",
        str(tiny_model("llama")),
        "--data",
        str(text),
        "-o",
        str(out),
        "--tokens",
        "1k",
    ]
    arguments += ["--length", "32", "--device", "cpu"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "held-out loss" in done.output
    assert (out / "config.json").is_file()
    again = CliRunner().invoke(app, [*arguments, "--overwrite", "--json"])
    assert json.loads(again.stdout)["losses"][-1][1] > 0


@pytest.mark.parametrize(
    ("option", "value", "message"), [("--tokens", "many", "500k"), ("--ratio", "2", "ratio")]
)
def test_mistakes(
    option: str, value: str, message: str, tiny_model: Tiny, text: Path, tmp_path: Path
) -> None:
    arguments = [
        "train",
        "lost",
        str(tiny_model("llama")),
        "--data",
        str(text),
        "-o",
        str(tmp_path / "out"),
        option,
        value,
    ]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code != 0
    assert message in str(done.exception) or message in done.output
