"""A diagnosis from one end to the other: which entries are answered, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import compress
from compress.diagnose import ENTRIES, DiagnosisSettings, diagnose
from compress.diagnose.noise import noisy
from compress.errors import UserError
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
    assert [finding.entry for finding in found.findings] == [name for name in ENTRIES if name != "drift"]
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
