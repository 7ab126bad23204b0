"""What `compress plan` says: exact bytes, what stays as it is and why, and whether text is needed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compress_cli.main import app
from typer.testing import CliRunner

from compress.system.machine import Machine, cpu_name

Tiny = Callable[..., Path]
SMALL = ["--set", "quantize.group_size=32"]


def plan(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["plan", *map(str, arguments)])
    assert result.exit_code == 0, result.stderr
    return result.stdout


def as_json(*arguments: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(plan(*arguments, "--json"))
    return found


def test_the_sizes_before_and_after(tiny_model: Tiny) -> None:
    model = tiny_model("llama")
    shown, planned = plan(model, "-r", "w4-rtn", *SMALL), as_json(model, "-r", "w4-rtn", *SMALL)
    assert f"({planned['total_bytes']} bytes of weight files" in shown
    assert planned["source_bytes"] == sum(path.stat().st_size for path in model.glob("*.safetensors"))
    assert planned["total_bytes"] < planned["source_bytes"]


@pytest.mark.parametrize(("recipe", "needed"), [("w4-rtn", False), ("w8", False), ("w4-gptq", True)])
def test_whether_calibration_text_is_needed(tiny_model: Tiny, recipe: str, needed: bool) -> None:
    arguments = [] if recipe == "w8" else SMALL
    shown = plan(tiny_model("llama"), "-r", recipe, *arguments)
    assert ("data: calibration text is needed" in shown) is needed
    assert ("data: none is needed" in shown) is not needed


def test_what_stays_as_it_is_with_the_reason(tiny_model: Tiny) -> None:
    shown = plan(tiny_model("llama"), "-r", "w4-rtn", *SMALL, "--set", 'ignore=["re:.*down_proj"]')
    assert "Left as it is" in shown
    assert "ignored by the recipe ('re:.*down_proj')" in shown
    planned = as_json(tiny_model("llama"), "-r", "w4-rtn", *SMALL, "--set", 'ignore=["re:.*down_proj"]')
    assert not any("down_proj" in name for name in planned["weights"])
    reasons = {entry["name"]: entry["reason"] for entry in planned["skipped"]}
    assert reasons["lm_head"] == "not targeted by the recipe"


def test_a_scheme_in_the_place_of_a_recipe(tiny_model: Tiny) -> None:
    model = tiny_model("llama")
    plans = [as_json(model, "--scheme", "int8"), as_json(model, "-r", "W8A8")]
    for planned in plans:
        assert planned.pop("seconds") is None
        assert "not estimated" in planned.pop("seconds_from")
    assert plans[0] == plans[1]
    weights = as_json(model, "--scheme", "int8")["weights"].values()
    assert {weight["layout"]["name"] for weight in weights} == {"int-quantized"}


def test_every_weight_is_listed_when_asked(tiny_model: Tiny) -> None:
    model = tiny_model("mixtral")
    planned = as_json(model, "-r", "w4-rtn", *SMALL)
    listed = plan(model, "-r", "w4-rtn", *SMALL, "--weights")
    assert all(name in listed for name in planned["weights"])
    assert "Every compressed weight" not in plan(model, "-r", "w4-rtn", *SMALL)


def test_a_setting_changes_the_bytes(tiny_model: Tiny) -> None:
    model = tiny_model("llama")
    sizes = [
        as_json(model, "-r", "w4-rtn", *SMALL, "--set", f"quantize.bits={bits}")["total_bytes"]
        for bits in (2, 3, 4, 8)
    ]
    assert sizes == sorted(set(sizes))


def test_the_format_and_its_reason(tiny_model: Tiny) -> None:
    model = tiny_model("llama")
    assert "format: compressed-tensors, since" in plan(model, "-r", "w4-rtn", *SMALL)
    assert "format: dense, since" in plan(model, "-r", "w4-rtn", *SMALL, "--format", "dense")
    assert "format: native, since" in plan(model, "-r", "sparse50-wanda")


def test_nothing_is_written(tiny_model: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan(tiny_model("llama"), "-r", "w4-gptq", *SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("family", "settings", "expected"),
    [
        ("llama", [], 2 * 256 * 64 * 2),
        ("llama_tied", [], 256 * 64 * 2),
        # 8-bit codes, a bf16 scale for each of two groups of 32 and the shape.
        ("llama_tied", ["--set", "embeddings={bits: 8, group_size: 32}"], 256 * 64 + 256 * 2 * 2 + 16),
        ("llama", ["--set", "head={bits: 8, group_size: 32}"], 256 * 64 * 2 + 256 * 64 + 256 * 2 * 2 + 16),
    ],
)
def test_the_bytes_of_embeddings_and_head(
    tiny_model: Tiny, family: str, settings: list[str], expected: int
) -> None:
    model = tiny_model(family)
    assert as_json(model, "-r", "w4-rtn", *SMALL, *settings)["outside_bytes"] == expected
    assert f"({expected} bytes)" in plan(model, "-r", "w4-rtn", *SMALL, *settings)


def test_a_text_is_counted(tiny_model: Tiny, tmp_path: Path) -> None:
    model, text = tiny_model("llama"), tmp_path / "notes.txt"
    text.write_text("Some words for a few windows of text.", encoding="utf-8")
    options = ["-r", "w4-gptq", *SMALL, "--data", text, "--samples", "9"]
    assert "for 9 windows of 8, so the windows overlap" in plan(model, *options, "--length", "8")
    result = CliRunner().invoke(app, ["plan", str(model), *map(str, options), "--length", "100"])
    assert result.exit_code == 2
    assert "fewer than one sequence of 100" in result.stderr


def test_measuring_the_machine_alone_and_for_later_plans(
    tiny_model: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    measured = Machine({"float32": 1e9}, cpu=cpu_name(), threads=torch.get_num_threads(), day="2026-01-02")
    monkeypatch.setattr("compress.pipeline.machine_time.measure_machine", lambda device: measured)
    assert "its figures are assumed" in plan(tiny_model("llama"), "-r", "w4-rtn", *SMALL)
    assert as_json(tiny_model("llama"), "-r", "w4-rtn", *SMALL)["seconds"] > 0
    assert plan("--measure") == ""
    shown = plan(tiny_model("llama"), "-r", "w4-rtn", *SMALL)
    assert "time: about" in shown
    assert "its figures are measured on 2026-01-02" in shown


def test_no_model_and_nothing_to_measure() -> None:
    result = CliRunner().invoke(app, ["plan"])
    assert result.exit_code == 2
    assert "no model is named" in result.stderr


def test_a_bound_of_an_accelerator_that_is_not_there(tiny_model: Tiny) -> None:
    result = CliRunner().invoke(
        app, ["plan", str(tiny_model("llama")), "-r", "w4-rtn", "--device-memory", "8GB"]
    )
    assert result.exit_code == 2
    assert "this run is on the CPU: give --memory" in " ".join(result.stderr.split())
