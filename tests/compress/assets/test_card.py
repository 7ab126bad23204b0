"""The embedded model's card: what the hub and the cards of outputs take from it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from compress import compress
from compress.assets import embedded_model
from compress.verification import fresh_process
from tools.train_embedded import MODEL_CARD

ROOT = Path(__file__).resolve().parents[3]


def metadata(card: str) -> dict[str, object]:
    return yaml.safe_load(card.split("---\n")[1])


def test_the_licence_is_the_project_s_and_the_text_s_is_told_apart() -> None:
    card = (embedded_model() / "README.md").read_text(encoding="utf-8")
    said = re.search(
        r'^license = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert said is not None
    assert metadata(card)["license"] == said[1].lower() == "apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "PSF licence version 2" in card
    assert (embedded_model().parent / "text" / "LICENSE.txt").is_file()
    assert metadata(MODEL_CARD) == metadata(card)  # the next training writes the same


def test_an_output_of_it_carries_the_licence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fresh_process, "LARGEST", 0)
    compress("embedded", "w8", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert metadata(card)["license"] == "apache-2.0"
    assert "Licence: apache-2.0, as the base model's." in card
