"""A diagnosis from one end to the other: which entries are answered, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import compress
from compress.diagnose import ENTRIES, DiagnosisSettings, diagnose, run
from compress.diagnose.control import METHODS
from compress.diagnose.noise import noisy
from compress.errors import UserError
from compress.evaluation.holdout import note_asked
from compress.formats.dense_source import open_dense
from compress.models.skeleton import open_skeleton

Tiny = Callable[..., Path]
FEW = DiagnosisSettings(samples=4, length=32, device="cpu")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog, and every weight is accounted for. " * 60)
    return path


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_every_entry_is_answered(family: str, tiny_model: Tiny, text: Path) -> None:
    found = diagnose(tiny_model(family), data=str(text), calibration=str(text), settings=FEW)
    assert [finding.entry for finding in found.findings] == [
        name for name in ENTRIES if name not in ("drift", "scales", "holdout")
    ]
    for finding in found.findings:
        assert finding.rows
        assert all(len(row) == len(finding.columns) for row in finding.rows)
        assert finding.advice.endswith(".")
        assert set(finding.to_json()["rows"][0]) == set(finding.columns)
    by_name = {finding.entry: finding for finding in found.findings}
    assert by_name["coverage"].rows[0][1] == pytest.approx(1.0)


def test_without_a_text_the_weights_alone(tiny_model: Tiny) -> None:
    found = diagnose(tiny_model("llama"), settings=FEW)
    assert [finding.entry for finding in found.findings] == ["shape", "spectrum", "norms", "redundancy"]


def test_a_compressed_model_beside_the_dense_one(tiny_model: Tiny, text: Path, tmp_path: Path) -> None:
    dense = tiny_model("llama")
    compress.compress(
        dense,
        "w2-gptq",
        tmp_path / "out",
        data=str(text),
        settings={"calibrate.samples": 2, "calibrate.length": 32},
    )
    (finding,) = diagnose(
        tmp_path / "out", data=str(text), against=dense, entries=["drift"], settings=FEW
    ).findings
    assert finding.rows[0][1] == pytest.approx(0.0, abs=0.1)
    assert float(str(finding.rows[1][1])) > 1
    (same,) = diagnose(dense, data=str(text), against=dense, entries=["drift"], settings=FEW).findings
    assert all(float(str(row[2])) == 0 for row in same.rows)


def test_noise_of_the_size_of_a_grid_goes_away_again(tiny_model: Tiny) -> None:
    skeleton = open_skeleton(open_dense(tiny_model("llama")))
    with skeleton.loaded_whole(device="cpu", dtype=torch.float32):
        view = skeleton.block_views(0)[0]
        parameter = skeleton.parameter_of(view)
        before = parameter.clone()
        with noisy(skeleton, [view]):
            step = before.abs().amax() / 7
            assert 0 < float((parameter - before).abs().max()) <= float(step / 2)
        assert torch.equal(parameter, before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"entries": ["shap"]}, "did you mean shape"),
        ({"entries": ["outliers"]}, "needs a text"),
        ({"entries": ["drift"], "data": "embedded"}, "needs the dense model"),
    ],
)
def test_what_cannot_be_answered(arguments: dict[str, object], message: str, tiny_model: Tiny) -> None:
    with pytest.raises(UserError, match=message):
        diagnose(tiny_model("llama"), settings=FEW, **arguments)  # type: ignore[arg-type]


def test_two_sizes_of_a_model(tiny_model: Tiny, text: Path) -> None:
    (finding,) = diagnose(
        tiny_model("llama"), data=str(text), other_size=tiny_model("gpt2"), entries=["scales"], settings=FEW
    ).findings
    assert {row[0] for row in finding.rows} == set(METHODS)
    assert sorted(int(str(row[3])) for row in finding.rows) == [1, 2, 3, 4, 5]


def test_an_output_that_was_measured_knows_its_texts(tiny_model: Tiny, tmp_path: Path) -> None:
    for name in ("a", "b"):
        compress.compress(
            tiny_model("llama"), "w4-rtn", tmp_path / name, settings={"quantize.group_size": 32}
        )
    note_asked(tmp_path / "a", {"1" * 64: "held-out.txt"})
    note_asked(tmp_path / "b", {"1" * 64: "held-out.txt"})
    note_asked(tmp_path / "b", {"1" * 64: "held-out.txt"})
    (finding,) = diagnose(tmp_path / "b", entries=["holdout"], settings=FEW).findings
    assert finding.rows[0][:3] == ("held-out.txt", 2, 2)
    assert "2 outputs were measured on held-out.txt" in finding.advice
    with pytest.raises(UserError, match="compress eval"):
        diagnose(tiny_model("llama"), entries=["holdout"], settings=FEW)


def test_texts_that_are_too_short_are_refused_before_the_first_pass(
    tiny_model: Tiny, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("Too short.")
    monkeypatch.setattr(run, "walk_blocks", lambda *_, **__: pytest.fail("the model was run"))
    with pytest.raises(UserError, match="has 10 tokens, fewer than one sequence of 32"):
        diagnose(tiny_model("llama"), data=str(text), calibration=str(short), settings=FEW)
    with pytest.raises(UserError, match="has 10 tokens, fewer than one sequence of 32"):
        diagnose(tiny_model("llama"), data=str(short), other_size=tiny_model("qwen3"), settings=FEW)
