"""`compress inspect`: totals and the largest weights, on the screen and as JSON."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from compress_cli.main import app
from typer.testing import CliRunner

from compress.api import compress
from compress.assets import embedded_model
from compress.recipe.recipe import Recipe

Tiny = Callable[..., Path]


def inspect(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["inspect", *map(str, arguments)])
    assert result.exit_code == 0, result.stderr
    return result.stdout


def as_json(*arguments: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(inspect(*arguments, "--json"))
    return found


def test_the_headline(tiny_model: Tiny) -> None:
    found = as_json(tiny_model("qwen3"))
    assert found["architecture"] == "Qwen3ForCausalLM"
    assert found["quant_method"] is None
    assert found["files"] == 1
    assert found["bits_per_weight"] == 16
    assert "Qwen3ForCausalLM: " in inspect(tiny_model("qwen3"))
    assert "not packed." in inspect(tiny_model("qwen3"))


def test_totals_add_up(tiny_model: Tiny) -> None:
    found = as_json(tiny_model("phi3"))
    assert sum(total["parameters"] for total in found["totals"]) == found["parameters"]
    assert sum(total["nbytes"] for total in found["totals"]) == found["bytes"]


def test_the_largest_weights_as_many_as_asked(tiny_model: Tiny) -> None:
    model = tiny_model("llama")
    sizes = [one["nbytes"] for one in as_json(model, "--largest", 5)["largest"]]
    assert len(sizes) == 5
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == max(one["nbytes"] for one in as_json(model, "--largest", 999)["largest"])
    assert as_json(model, "--largest", 0)["largest"] == []
    assert "The largest" not in inspect(model, "--largest", 0)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["inspect", str(tmp_path)])
    assert result.exit_code == 2
    assert result.stderr.startswith("compress: ")


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A GGUF file as another program leaves it: alone, with configuration and tokenizer in its metadata."""
    step = {"targets": ["linear"], "quantize": {"type": "q8_0"}, "solver": "nearest"}
    recipe = Recipe.parse({"name": "round", "format": "gguf", "steps": [step]})
    compress(embedded_model(), recipe, tmp_path / "ours", device="cpu")
    (tmp_path / "alone").mkdir()
    return Path(shutil.move(tmp_path / "ours" / "model.gguf", tmp_path / "alone" / "some-Q8_0.gguf"))


def test_a_gguf_file_of_another_program(foreign: Path) -> None:
    """Names, types and bytes are those that the package of llama.cpp reads from the file."""
    gguf = pytest.importorskip("gguf")
    found = as_json(foreign)
    assert found == as_json(foreign.parent) | {"name": str(foreign)}
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(foreign).tensors}
    assert found["tensors"] == len(tensors)
    assert found["bytes"] == sum(int(tensor.n_bytes) for tensor in tensors.values())
    assert found["architecture"] == "llama"
    assert {(total["kind"], total["form"]) for total in found["totals"]} >= {
        ("linear", "q8_0"),
        ("embedding", "bf16"),
        ("vector", "fp32"),
    }
    largest = found["largest"][0]
    assert tuple(largest["shape"]) == tuple(map(int, tensors[largest["name"]].shape[::-1]))


def test_commands_that_open_a_checkpoint_take_a_gguf_file(foreign: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Some words of a text. " * 60, encoding="utf-8")
    evaluated = ["eval", "embedded", str(foreign), "--text", str(text), "--limit", "2", "--length", "32"]
    for arguments in (
        [*evaluated, "--no-speed", "--json", "--device", "cpu", "--quiet"],
        ["generate", str(foreign), "A word", "--max-new-tokens", "2", "--device", "cpu"],
    ):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.stderr
        if arguments[0] == "eval":
            row = json.loads(result.stdout)["candidates"][0]
            assert row["kl"] < 0.01
            assert row["bytes_on_disk"] == foreign.stat().st_size
            assert 8 < row["bits_per_weight"] < 12


def test_several_gguf_files_in_a_folder_are_refused(foreign: Path) -> None:
    shutil.copy(foreign, foreign.with_name("other.gguf"))
    result = CliRunner().invoke(app, ["inspect", str(foreign.parent)])
    assert result.exit_code == 2
    assert "2 GGUF files" in result.stderr


def test_a_configuration_with_values_of_wrong_types(tiny_model: Tiny, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model("llama"), tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"quantization_config": 3, "architectures": 3}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert CliRunner().invoke(app, ["inspect", str(folder)]).exit_code in (0, 2)
