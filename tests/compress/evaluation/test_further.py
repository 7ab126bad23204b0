from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from compress.errors import UserError
from compress.evaluation import Evaluation, evaluate, texts

SETTINGS = {"length": 24, "limit": 5, "dtype": "fp32", "device": "cpu", "speed": False}


@pytest.fixture(scope="module")
def other_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("other") / "other.txt"
    path.write_text("Quite another text, about nothing that stands in the first one! " * 20, encoding="utf-8")
    return path


@pytest.mark.parametrize("keep_bytes", [2 << 30, 0], ids=["kept", "lockstep"])
def test_a_further_text_has_the_figures_that_it_has_alone(
    models: SimpleNamespace, dense: Path, noisy: Path, text: Path, other_text: Path, keep_bytes: int
) -> None:
    both = evaluate(
        dense, [noisy], text=[text, other_text], load=models.load, keep_bytes=keep_bytes, **SETTINGS
    )
    alone = evaluate(dense, [noisy], text=other_text, load=models.load, **SETTINGS)
    first = evaluate(dense, [noisy], text=text, load=models.load, **SETTINGS)
    assert both.candidates[0].kl == first.candidates[0].kl
    (found,), expected = both.candidates[0].texts, alone.candidates[0]
    assert found.text == "other.txt"
    for name in ("kl", "kl_error", "kl_99", "top1", "top1_error", "perplexity", "perplexity_error",
                 "perplexity_ratio", "perplexity_ratio_error", "rms_shift", "calibration_error"):  # fmt: skip
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-6), name
    assert both.reference.texts[0].perplexity == pytest.approx(alone.reference.perplexity, rel=1e-6)
    assert both.reference.texts[0].kl is None


def test_everything_goes_to_a_file_and_comes_back(
    models: SimpleNamespace, dense: Path, noisy: Path, text: Path, other_text: Path, tmp_path: Path
) -> None:
    found = evaluate(
        dense,
        [noisy, dense],
        text=[text, other_text],
        load=models.load,
        prompts=2,
        needle=True,
        calibration=other_text,
        **SETTINGS,
    )
    found.save(tmp_path / "figures.json")
    assert Evaluation.read(tmp_path / "figures.json") == found
    reference, noised, same = found.rows
    assert reference.generation is not None
    assert noised.generation is not None
    assert same.generation is not None
    assert reference.generation.agreement is None
    assert same.generation.agreement == same.generation.tokens
    assert noised.generation.agreement < same.generation.agreement
    assert same.continuations == reference.continuations
    assert len(found.prompts) == len(reference.continuations) == 2
    assert found.prompts[0].startswith("Line 0: the quick")
    assert reference.needle is not None
    assert reference.needle.context == 128
    assert same.needle == reference.needle
    assert "held-out.txt has" in found.notes[0]
    assert json.loads((tmp_path / "figures.json").read_text())["text_sha256"] == found.text_sha256


def test_the_shipped_prose_is_measured_when_asked(models: SimpleNamespace, dense: Path, text: Path) -> None:
    found = evaluate(dense, [], text=text, load=models.load, foreign=True, **SETTINGS)
    assert [(one.text, one.windows) for one in found.reference.texts] == [("prose.txt", 5)]
    named = evaluate(dense, [], text=["prose", text], load=models.load, foreign=True, **SETTINGS)
    assert named.text == "prose.txt"
    assert [one.text for one in named.reference.texts] == ["held-out.txt"]


def test_a_text_twice_and_none(models: SimpleNamespace, dense: Path, text: Path) -> None:
    with pytest.raises(UserError, match="named twice"):
        evaluate(dense, [], text=[text, text], load=models.load, **SETTINGS)
    with pytest.raises(UserError, match="no text"):
        evaluate(dense, [], text=[], load=models.load, **SETTINGS)


def test_a_text_that_is_too_short_is_refused_before_a_model_is_loaded(dense: Path, tmp_path: Path) -> None:
    def load(*_: Any, **__: Any) -> Any:
        raise AssertionError("a model is loaded")

    short = tmp_path / "short.txt"
    short.write_text("Too short.", encoding="utf-8")
    with pytest.raises(UserError, match="10 tokens, fewer than one window of 64"):
        evaluate(dense, [], text=short, load=load, length=64)
    with pytest.raises(
        UserError, match="10 tokens, fewer than one window of 128"
    ):  # all that the model takes
        evaluate(dense, [], text=short, load=load, length=4096)
    long = tmp_path / "long.txt"
    long.write_text("Long enough. " * 20, encoding="utf-8")
    with pytest.raises(UserError, match="10 tokens, fewer than one window of 64"):
        evaluate(dense, [], text=long, calibration=short, load=load, length=64)


def test_prose_that_is_too_short_is_left_out_with_a_note(
    models: SimpleNamespace, dense: Path, text: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    short = tmp_path / "prose.txt"
    short.write_text("Too short.", encoding="utf-8")
    monkeypatch.setattr(texts, "embedded_text", lambda part: short)
    found = evaluate(dense, [], text=text, load=models.load, foreign=True, **SETTINGS)
    assert found.reference.texts == ()
    assert "another domain" in found.notes[-1]
    assert "fewer than one window" in found.notes[-1]
