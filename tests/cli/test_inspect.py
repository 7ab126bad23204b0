"""`compress inspect`: totals and the largest weights, on the screen and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compress_cli.main import app
from typer.testing import CliRunner

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
