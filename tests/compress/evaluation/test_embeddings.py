"""Embedding models from end to end: compressed, reloaded by plain transformers, and measured."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModel, BertModel, MPNetModel, PreTrainedModel, XLMRobertaModel

from compress import api
from compress.errors import UserError
from compress.evaluation import Evaluation, compare
from compress.evaluation.embeddings import FIRST, LAST, MAX, MEAN, EmbeddingTally, pooled, pooling_of
from compress.recipe.recipe import Recipe
from compress.text.limits import fit_length, reserved_positions

WriteTokenizer = Callable[[Path], None]
SMALL: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 66,
    "pad_token_id": 1,
    "initializer_range": 0.1,
}
CLASSES = {"bert": BertModel, "xlm-roberta": XLMRobertaModel, "mpnet": MPNetModel}
TOKENS = torch.arange(2, 42).unsqueeze(0)


@pytest.fixture(scope="module")
def encoder(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Path]
) -> Callable[[str], Path]:
    """A tiny random encoder with a tokenizer, by its kind."""
    made: dict[str, Path] = {}

    def write(kind: str) -> Path:
        if kind not in made:
            torch.manual_seed(0)
            folder = tmp_path_factory.mktemp(kind) / "model"
            model: PreTrainedModel = CLASSES[kind](AutoConfig.for_model(kind, **SMALL))
            model.save_pretrained(folder)
            for file in tiny_model("llama").glob("tokenizer*"):
                (folder / file.name).write_bytes(file.read_bytes())
            made[kind] = folder
        return made[kind]

    return write


def states(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = AutoModel.from_pretrained(folder).eval()(input_ids=TOKENS)[0]
    return found


@pytest.mark.parametrize("kind", CLASSES)
def test_from_a_dense_encoder_to_figures(encoder: Callable[[str], Path], tmp_path: Path, kind: str) -> None:
    settings = {"quantize.group_size": 32}
    out, close = tmp_path / "w4", tmp_path / "w8"
    result = api.compress(encoder(kind), "w4-gptq", out, samples=8, settings=settings, device="cpu")
    api.compress(encoder(kind), "w8", close, device="cpu")
    assert result.plan.format == "compressed-tensors"
    assert len(result.plan.weights) == 12
    assert api.verify(out, encoder(kind)).packed == 12
    reloaded, dense = states(out), states(encoder(kind))
    ours = api.load(out, device="cpu").base_model(input_ids=TOKENS)[0]
    torch.testing.assert_close(ours, reloaded, rtol=1e-4, atol=1e-4)
    error = float((reloaded - dense).norm() / dense.norm())
    assert 0.001 < error < 0.5
    options: dict[str, Any] = {"length": 48, "limit": 6, "dtype": "fp32", "device": "cpu", "speed": False}
    measured = api.evaluate(encoder(kind), [out, close], text="embedded", **options)
    four, eight = measured.candidates
    assert measured.pooling == MEAN
    assert math.isnan(measured.reference.perplexity)
    assert four.cosine is not None
    assert eight.cosine is not None
    assert four.hidden_error is not None
    assert 0.5 < four.cosine < eight.cosine <= 1 + 1e-6
    assert 0.001 < four.hidden_error < 0.5
    saved = tmp_path / "figures.json"
    measured.save(saved)
    again = Evaluation.read(saved)
    assert math.isnan(again.reference.perplexity)
    assert again.candidates[0].cosine == four.cosine
    lockstep = compare.evaluate(encoder(kind), [out], text="embedded", load=api.load, keep_bytes=0, **options)
    assert lockstep.candidates[0].cosine == pytest.approx(four.cosine, rel=1e-5)


def test_figures_against_float64() -> None:
    torch.manual_seed(0)
    dense, ours = torch.randn(5, 7, 16), torch.randn(5, 7, 16)
    tally = EmbeddingTally(MEAN)
    tally.add(ours[:2], dense[:2])
    tally.add(ours[2:], dense[2:])
    a, b = ours.double(), dense.double()
    cosines = [float(F.cosine_similarity(x.mean(0), y.mean(0), dim=0)) for x, y in zip(a, b, strict=True)]
    assert tally.hidden_error == pytest.approx(float((a - b).norm() / b.norm()), rel=1e-6)
    assert tally.cosine == pytest.approx(sum(cosines) / 5, abs=1e-6)
    assert tally.cosine_min == pytest.approx(min(cosines), abs=1e-6)


@pytest.mark.parametrize(
    ("config", "mode"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, FIRST),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, MEAN),
        ({"pooling_mode_lasttoken": True}, LAST),
        ({"pooling_mode": "max"}, MAX),
        (None, MEAN),
    ],
)
def test_pooling_as_sentence_transformers_says(tmp_path: Path, config: Any, mode: str) -> None:
    if config is not None:
        (tmp_path / "1_Pooling").mkdir()
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(config))
    assert pooling_of(tmp_path) == mode
    hidden = torch.randn(2, 3, 4)
    expected = {FIRST: hidden[:, 0], LAST: hidden[:, 2], MAX: hidden.max(1).values, MEAN: hidden.sum(1) / 3}
    torch.testing.assert_close(pooled(hidden, mode), expected[mode])


def test_positions_that_count_from_the_padding(encoder: Callable[[str], Path]) -> None:
    """A table of 66 rows of which two stand for padding takes 64 tokens."""
    for kind, reserved in (("bert", 0), ("xlm-roberta", 2), ("mpnet", 2)):
        model = CLASSES[kind](AutoConfig.for_model(kind, **SMALL))
        assert reserved_positions(model) == reserved
        length, _ = fit_length(model.config, 2048, reserved)
        assert length == 66 - reserved
        model(input_ids=torch.full((1, length), 5))
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, length + 1), 5))


def test_gradients_and_tasks_are_refused(
    encoder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They need the loss of the next token; said before any work, in one sentence."""
    for recipe in ("best-w4", "lowrank80-gfwsvd"):
        for call in (
            lambda r=recipe: api.plan(
                encoder("bert"), r, samples=2, settings={"quantize.group_size": 32} if r == "best-w4" else {}
            ),
            lambda r=recipe: api.compress(
                encoder("bert"),
                r,
                tmp_path / "out",
                samples=2,
                device="cpu",
                settings={"quantize.group_size": 32} if r == "best-w4" else {},
            ),
        ):
            with pytest.raises(UserError, match="predicts no tokens"):
                call()
    assert not (tmp_path / "out").exists()
    options: dict[str, Any] = {"length": 16, "limit": 1, "device": "cpu"}
    monkeypatch.setattr("compress.evaluation.compare.check_tasks", lambda *_: None)  # a task that there is
    with pytest.raises(UserError, match="Tasks.* need a language model"):
        api.evaluate(encoder("bert"), [], text="embedded", tasks=["x"], **options)
    drop = {"name": "d", "depth_pruning": {"blocks": 1, "by": "loss"}, "steps": []}
    with pytest.raises(UserError, match="predicts no tokens"):
        api.plan(encoder("bert"), Recipe.parse(drop), samples=2)
