"""GGUF files as sources: tensors that the `gguf` package itself quantized and wrote, without a word of ours beside them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from compress import api
from compress.assets import embedded_model
from compress.checkpoint.source import open_source
from compress.errors import UserError
from compress.formats.dense_source import open_dense
from compress.formats.gguf.foreign import foreign_gguf
from compress.models.materialize import load_dense
from compress.recipe.recipe import Recipe

gguf = pytest.importorskip("gguf")
TinyModel = Callable[..., Path]
TOKENS = torch.arange(2, 26).unsqueeze(0)


def recipe(**quantize: Any) -> Recipe:
    step = {"targets": ["linear", "experts"], "quantize": quantize, "solver": "nearest"}
    return Recipe.parse(
        {"name": "round", "format": "gguf" if "type" in quantize else "auto", "steps": [step]}
    )


def written(model: Path, folder: Path, *, with_files: bool = True) -> Path:
    """A GGUF file in a folder with the original's configuration and tokenizer, or alone."""
    api.compress(model, recipe(type="q8_0"), folder / "ours", device="cpu")
    place = folder / "foreign"
    place.mkdir()
    shutil.copy(folder / "ours" / "model.gguf", place / "some-Q8_0.gguf")
    for file in model.iterdir() if with_files else ():
        if file.suffix != ".safetensors":
            shutil.copy(file, place / file.name)
    return place


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


@pytest.mark.parametrize("family", ["llama", "llama_tied", "qwen3", "gpt2", "phi3", "mixtral", "gpt_oss"])
def test_a_folder_with_a_gguf_file(tiny_model: TinyModel, tmp_path: Path, family: str) -> None:
    """Names, shapes, orders of rows and norms are those of the checkpoint that the file was made from."""
    folder = written(tiny_model(family), tmp_path)
    dense, original = open_dense(folder), open_source(tiny_model(family))
    assert dense.stored_as.startswith("GGUF (")
    assert "Q8_0" in dense.stored_as
    ours, reference = (load_dense(source, torch.float32) for source in (dense, original))
    expected = dict(reference.named_parameters())
    for name, parameter in ours.named_parameters():
        assert relative(parameter, expected[name]) < 0.01, name
    with torch.no_grad():
        assert relative(ours(TOKENS).logits, reference(TOKENS).logits) < 0.05


def test_a_run_over_a_gguf_file(tiny_model: TinyModel, tmp_path: Path) -> None:
    folder = written(tiny_model("llama"), tmp_path)
    file = folder / "some-Q8_0.gguf"
    out = tmp_path / "out"
    with torch.no_grad():
        dense = load_dense(open_dense(file), torch.float32)(TOKENS).logits
        assert relative(api.load(file, dtype=torch.float32, device="cpu")(TOKENS).logits, dense) < 1e-5
    result = api.compress(file, recipe(bits=8, group_size=32), out, device="cpu")
    assert result.report.source.stored_as == "GGUF (BF16, Q8_0)"
    assert api.verify(out, file).packed == 14
    assert not list(out.glob("*.gguf"))
    assert (out / "tokenizer.json").is_file()
    with torch.no_grad():
        reference = load_dense(open_source(tiny_model("llama")), torch.float32)(TOKENS).logits
        assert relative(api.load(out, dtype=torch.float32, device="cpu")(TOKENS).logits, reference) < 0.05


def test_which_file_is_meant(tiny_model: TinyModel, tmp_path: Path) -> None:
    folder = written(tiny_model("llama"), tmp_path)
    file = folder / "some-Q8_0.gguf"
    assert foreign_gguf(file) == foreign_gguf(folder) == file
    assert foreign_gguf(tmp_path / "ours") is None
    assert foreign_gguf(tiny_model("llama")) is None
    shutil.copy(file, folder / "other.gguf")
    with pytest.raises(UserError, match="2 GGUF files"):
        foreign_gguf(folder)


def test_files_that_cannot_be_read_are_refused(tiny_model: TinyModel, tmp_path: Path) -> None:
    folder = written(tiny_model("llama"), tmp_path)
    (folder / "some-Q8_0.gguf").write_bytes(b"GGUFxxxx")
    with pytest.raises(UserError, match="no GGUF file that can be read"):
        open_dense(folder)


def test_a_file_alone(tmp_path: Path) -> None:
    """Configuration and tokenizer are made from the file's metadata."""
    api.compress(embedded_model(), recipe(type="q8_0"), tmp_path / "ours", device="cpu")
    (tmp_path / "alone").mkdir()
    file = shutil.copy(tmp_path / "ours" / "model.gguf", tmp_path / "alone" / "model-q8.gguf")
    dense = open_dense(file)
    assert dense.path.name == "model-q8"
    assert {"tokenizer.json", "tokenizer_config.json"} <= {path.name for path in dense.extra_files()}
    with torch.no_grad():
        reference = load_dense(open_source(embedded_model()), torch.float32)(TOKENS).logits
        assert relative(load_dense(dense, torch.float32)(TOKENS).logits, reference) < 0.02
    api.compress(file, recipe(bits=8, group_size=32), tmp_path / "out", device="cpu")
    assert api.verify(tmp_path / "out", file).passed_through
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "llama"
