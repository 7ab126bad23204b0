"""The model card: metadata that the hub reads, the recipe, what was measured, and how to load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from compress_cli.main import app
from typer.testing import CliRunner

import compress
from compress.recipe.recipe import Recipe
from compress.report.card import hub_name, model_card, read_card
from compress.report.schema import Report

SOURCE = "---\nlicense: apache-2.0\nlanguage:\n- en\nbase_model: someone/older\ntags: [x]\n---\n# The source\nWords.\n"


def metadata(card: str) -> dict[str, Any]:
    return dict(yaml.safe_load(card.split("---\n")[1]))


@pytest.fixture(scope="module")
def out(tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    for file in tiny_model("llama").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "README.md").write_text(SOURCE)
    result = compress.compress(folder, "w4-rtn", folder.parent / "out", settings={"quantize.group_size": 32})
    compress.verify(result.out, folder)
    return Path(result.out)


def test_the_card_is_of_the_output_and_keeps_the_licence(out: Path) -> None:
    card = str(read_card(out))
    data = metadata(card)
    assert data["license"] == "apache-2.0"
    assert data["language"] == ["en"]
    assert "base_model" not in data  # the source was a folder, and its own base is not the output's
    assert data["tags"] == ["compress", "compressed-tensors", "w4-rtn"]
    assert "# The source" not in card
    assert "Nothing was measured" in card
    assert 'from_pretrained("out"' in card
    assert "vllm serve out" in card
    assert "bits: 4" in card


def test_the_calibration_text_is_named_in_words(out: Path) -> None:
    seen = {"samples": 2, "length": 8, "tokens": 16}
    for data, said in (
        ("embedded", "2 windows of 8 tokens of the text that ships"),
        ("notes.txt", "of notes.txt,"),
    ):
        report = Report.model_validate(
            Report.read(out / "compress.json").model_dump() | {"calibration": {"data": data, **seen}}
        )
        assert said in model_card(report, name="out")


def test_the_recipe_is_told_without_defaults_and_can_be_run_again(out: Path) -> None:
    report = Report.read(out / "compress.json")
    text = str(read_card(out)).partition("```yaml\n")[2].partition("```")[0]
    assert Recipe.parse(yaml.safe_load(text)) == Recipe.parse(report.recipe)
    assert "null" not in text
    assert "ignore" not in text
    other = report.model_copy(update={"recipe": {"name": "older", "lost": 3}})
    assert "lost: 3" in model_card(other, name="out")


def test_a_name_of_the_hub_is_the_base_model(out: Path, tmp_path: Path) -> None:
    report = Report.read(out / "compress.json")
    data = metadata(model_card(report, name="out", base_model="org/model", card=SOURCE))
    assert data["base_model"] == "org/model"
    assert data["base_model_relation"] == "quantized"
    assert hub_name("org/model") == "org/model"
    assert hub_name(str(tmp_path)) is None
    assert hub_name("embedded") is None


@pytest.mark.parametrize("card", [None, "", "no metadata", "---\n[1, 2]\n---\n", "---\n: {\n---\n"])
def test_a_source_without_a_readable_card(card: str | None, out: Path) -> None:
    text = model_card(Report.read(out / "compress.json"), name="out", card=card)
    assert "names no licence" in text
    assert metadata(text)["library_name"] == "transformers"


def test_figures_go_into_the_card_with_their_error_and_windows(out: Path, tmp_path: Path) -> None:
    text = tmp_path / "held-out.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 20)
    evaluation = compress.evaluate(
        out.parent / next(p.name for p in out.parent.iterdir() if p.name.startswith("source")),
        [out],
        text=text,
        length=16,
        limit=4,
        speed=False,
    )
    evaluation.save(tmp_path / "figures.json")
    done = CliRunner().invoke(app, ["report", str(out), "--eval", str(tmp_path / "figures.json")])
    assert done.exit_code == 0, done.stderr
    card = str(read_card(out))
    evaluation.save(out / "evaluation.json")  # the same without --eval
    (out / "README.md").write_text(card.replace("±", "?"))
    assert CliRunner().invoke(app, ["report", str(out)]).exit_code == 0
    assert read_card(out) == card
    (out / "evaluation.json").unlink()
    assert card.count(" ± ") >= 4  # perplexities of both, KL, and the share of equal tokens
    assert "first 4 consecutive windows of held-out.txt" in card
    assert "Nothing was measured" not in card
    assert metadata(card)["license"] == "apache-2.0"


def test_an_export_describes_its_own_format(out: Path, tmp_path: Path) -> None:
    made = compress.export(out, tmp_path / "gguf", format="gguf")
    card = str(read_card(made.out))
    data = metadata(card)
    assert data["library_name"] == "gguf"
    assert data["tags"] == ["compress", "gguf", "w4-rtn"]
    assert data["license"] == "apache-2.0"
    assert "llama-cli -m gguf/model.gguf" in card
    assert "vllm" not in card
