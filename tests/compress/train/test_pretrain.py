"""Training from scratch: what is written loads with equal logits, is quantized and verified, and never taken for dense."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import compress
from compress.errors import UserError
from compress.models.lost_linear import LOST, LostLinear
from compress.train import pretrain
from compress.train.lost import with_lost_linears
from compress.train.pretrain import TrainSettings, train
from compress.train.write import RECORD

Tiny = Callable[..., Path]
TOKENS = torch.arange(3, 19).view(2, 8)
FEW = {"tokens": 4096, "batch": 4, "length": 32, "held_out": 4, "every": 8, "rate": 3e-3}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog, and every weight is accounted for. " * 120)
    return str(path)


@pytest.fixture(scope="module", params=["llama", "gpt_neox"])
def lost(
    request: pytest.FixtureRequest, tiny_model: Tiny, text: str, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("lost") / "out"
    trained = train(tiny_model(request.param), out, data=text, settings=TrainSettings(**FEW), device="cpu")
    losses = [loss for _, loss in trained.losses]
    assert losses[-1] < losses[0]
    return out


def _logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(TOKENS).logits
    return logits


def test_what_is_written_loads_with_equal_logits(lost: Path) -> None:
    config = json.loads((lost / "config.json").read_text())
    assert config[LOST]
    ours = compress.load(lost, dtype=torch.float32, device="cpu")
    theirs = AutoModelForCausalLM.from_pretrained(lost, dtype=torch.float32)
    layers = [module for module in ours.modules() if isinstance(module, LostLinear)]
    assert len(layers) == len(config[LOST]) > 0
    assert all(layer.index.unique().numel() == layer.columns for layer in layers)
    torch.testing.assert_close(_logits(ours), _logits(theirs), rtol=1e-5, atol=1e-5)
    assert json.loads((lost / RECORD).read_text())["settings"]["method"] == "lost"


def test_the_trained_model_is_the_written_one(tiny_model: Tiny, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama"), dtype=torch.float32)
    with_lost_linears(model, ratio=0.5)
    model.save_pretrained(tmp_path / "saved")
    torch.testing.assert_close(
        _logits(compress.load(tmp_path / "saved", device="cpu")), _logits(model), rtol=1e-5, atol=1e-5
    )


def test_plain_transformers_stops(lost: Path) -> None:
    code = (
        f"from transformers import AutoModelForCausalLM; AutoModelForCausalLM.from_pretrained({str(lost)!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "size" in done.stderr or "shape" in done.stderr


def test_it_is_quantized_evaluated_and_verified(lost: Path, text: str, tmp_path: Path) -> None:
    out = tmp_path / "w8"
    result = compress.compress(lost, "w8", out, data=text)
    assert result.report.format.name == "native"
    packed = compress.load(out, dtype=torch.float32, device="cpu")
    difference = (_logits(packed) - _logits(compress.load(lost, dtype=torch.float32, device="cpu"))).norm()
    assert 0 < float(difference) < 0.05 * float(_logits(packed).norm())
    compress.verify(out, source=lost)


@pytest.mark.parametrize("method", ["low-rank", "full"])
def test_the_baselines(method: str, tiny_model: Tiny, text: str, tmp_path: Path) -> None:
    trained = train(
        tiny_model("llama"),
        tmp_path / "out",
        data=text,
        settings=TrainSettings(**FEW, method=method),
        device="cpu",
    )
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (LOST in config) == (method == "low-rank")
    if method == "low-rank":
        assert all(
            not settings["columns"] and not settings["activation"] for settings in config[LOST].values()
        )
    model = compress.load(tmp_path / "out", device="cpu")
    assert sum(p.numel() for p in model.parameters()) == trained.parameters


def test_the_same_seed_gives_the_same_model(tiny_model: Tiny, text: str, tmp_path: Path) -> None:
    for name in ("one", "two"):
        settings = TrainSettings(**{**FEW, "tokens": 512})
        train(tiny_model("llama"), tmp_path / name, data=text, settings=settings, device="cpu")
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert first == second


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "lots"}, "no method"),
        ({"ratio": 0.0}, "ratio"),
        ({"length": 1}, "length"),
        ({"rate": 0.0}, "rate"),
    ],
)
def test_settings_out_of_range(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainSettings(**settings)  # type: ignore[arg-type]


def test_what_cannot_be_trained(tiny_model: Tiny, text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="held out|fewer"):
        train(
            tiny_model("llama"),
            tmp_path / "out",
            data=text,
            settings=TrainSettings(length=100_000),
            device="cpu",
        )
    with pytest.raises(UserError, match="smaller --rate"):
        train(
            tiny_model("llama"),
            tmp_path / "out",
            data=text,
            settings=TrainSettings(**{**FEW, "rate": 1e30}),
            device="cpu",
        )
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="already exists"):
        train(tiny_model("llama"), tmp_path / "there", data=text, settings=TrainSettings(**FEW))
    assert not (tmp_path / "out").exists()


def test_a_text_that_is_too_short_is_refused_before_the_model_is_made(
    tiny_model: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("one window of a few words and no more")
    monkeypatch.setattr(pretrain, "_model", lambda *_, **__: pytest.fail("the model was made"))
    with pytest.raises(UserError, match="fewer than two sequences of 32"):
        train(tiny_model("llama"), tmp_path / "out", data=str(short), settings=TrainSettings(**FEW))
