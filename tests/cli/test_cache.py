"""``compress run --cache``: the pass with gradients is made once for several recipes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from compress_cli.main import app
from typer.testing import CliRunner

from compress.calibrate import gradient_store

RECIPE = """
name: fisher
steps:
  - targets: [linear]
    quantize: {bits: 4, group_size: 32}
    score: fisher
    solver: yaqa
"""


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """One entry for each pass with gradients."""
    made, backward = list[Any](), gradient_store.backward

    def counted(*arguments: Any, **options: Any) -> Any:
        made.append(options)
        return backward(*arguments, **options)

    monkeypatch.setattr(gradient_store, "backward", counted)
    return made


def call(model: Path, out: Path, *more: str) -> Any:
    recipe = out.parent / "fisher.yaml"
    recipe.write_text(RECIPE)
    text = out.parent / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog " * 40)
    small = ["--data", str(text), "--samples", "2", "--length", "16", "--device", "cpu", "--no-fresh-process"]
    return CliRunner().invoke(app, ["run", str(model), "-r", str(recipe), "-o", str(out), *small, *more])


def test_another_recipe_takes_over_the_pass_with_gradients(
    tiny_model: Callable[..., Path], tmp_path: Path, passes: list[Any]
) -> None:
    model, cache = tiny_model("llama"), ["--cache", str(tmp_path / "kept" / "here")]
    three = ["--set", "quantize.bits=3"]
    for name, more in (("four", cache), ("three", [*cache, *three]), ("without", three)):
        assert call(model, tmp_path / name, *more).exit_code == 0
    assert len(passes) == 2  # of the first, and of the one without the folder
    three_bits, alone = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("three", "without")
    )
    assert three_bits == alone


def test_a_cache_that_is_no_folder_is_refused_before_any_work(
    tiny_model: Callable[..., Path], tmp_path: Path, passes: list[Any]
) -> None:
    file = tmp_path / "file"
    file.touch()
    result = call(tiny_model("llama"), tmp_path / "out", "--cache", str(file))
    assert result.exit_code == 2
    assert result.stderr == f"compress: --cache {file} cannot be a folder: File exists\n"
    assert not passes
