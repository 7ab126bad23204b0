from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer

from compress.errors import UserError
from compress.evaluation import Evaluation, evaluate


def brute_force(
    models: SimpleNamespace, dense: Path, other: Path, text: Path, length: int, limit: int
) -> tuple[float, float, float]:
    """Perplexity of `other`, KL and agreement, window by window and in float64."""
    tokens = AutoTokenizer.from_pretrained(dense)(text.read_text(encoding="utf-8"))["input_ids"]
    p_model, q_model = (models.load(path, dtype=torch.float64, device="cpu") for path in (dense, other))
    nll, kl, agree = [], [], []
    for window in range(limit):
        ids = tokens[window * length : (window + 1) * length]
        with torch.no_grad():
            p, q = (m(torch.tensor([ids])).logits[0].softmax(-1) for m in (p_model, q_model))
        for position in range(length):
            kl.append(
                sum(
                    a * math.log(a / b)
                    for a, b in zip(p[position].tolist(), q[position].tolist(), strict=True)
                )
            )
            agree.append(int(p[position].argmax()) == int(q[position].argmax()))
            if position + 1 < length:
                nll.append(-math.log(q[position, ids[position + 1]]))
    return math.exp(sum(nll) / len(nll)), sum(kl) / len(kl), sum(agree) / len(agree)


@pytest.mark.parametrize("keep_bytes", [2 << 30, 0], ids=["kept", "lockstep"])
def test_matches_brute_force_in_float64(
    models: SimpleNamespace, dense: Path, noisy: Path, text: Path, keep_bytes: int
) -> None:
    result = evaluate(
        dense,
        [noisy],
        text=text,
        load=models.load,
        length=24,
        limit=5,
        dtype="fp32",
        device="cpu",
        batch_size=2,
        speed=False,
        keep_bytes=keep_bytes,
    )
    perplexity, kl, top1 = brute_force(models, dense, noisy, text, 24, 5)
    (row,) = result.candidates
    assert (result.length, result.windows, result.tokens) == (24, 5, 120)
    assert row.perplexity == pytest.approx(perplexity, rel=1e-5)
    assert row.kl == pytest.approx(kl, rel=1e-4)
    assert kl > 0.01
    assert row.top1 == pytest.approx(top1)
    assert 0 < top1 < 1
    assert row.kl_error is not None
    assert 0 < row.kl_error < row.kl


def test_the_same_model_is_no_distance_away(models: SimpleNamespace, dense: Path, text: Path) -> None:
    result = evaluate(
        dense, [dense], text=text, load=models.load, length=32, limit=3, dtype="fp32", device="cpu"
    )
    reference, same = result.rows
    assert reference.kl is None
    assert (same.kl, same.top1, same.perplexity) == (0.0, 1.0, reference.perplexity)
    assert same.decode_tokens_per_second > 0
    assert same.prefill_tokens_per_second > 0
    assert same.load_seconds > 0
    assert same.bytes_on_disk == (dense / "model.safetensors").stat().st_size
    assert same.bits_per_weight == 32
    # Two rows of one folder's name would be alike, so the whole path names them.
    assert reference.name == str(dense)


def test_the_order_of_batches_does_not_matter(
    models: SimpleNamespace, dense: Path, noisy: Path, text: Path
) -> None:
    one, many = (
        evaluate(
            dense,
            [noisy],
            text=text,
            load=models.load,
            length=16,
            limit=7,
            device="cpu",
            batch_size=size,
            speed=False,
        )
        for size in (1, 4)
    )
    assert one.candidates[0].kl == pytest.approx(many.candidates[0].kl, rel=1e-2)


def test_figures_survive_json(
    models: SimpleNamespace, dense: Path, noisy: Path, text: Path, tmp_path: Path
) -> None:
    result = evaluate(
        dense, [noisy], text=text, load=models.load, length=16, limit=2, device="cpu", speed=False
    )
    result.save(tmp_path / "evaluation.json")
    assert Evaluation.read(tmp_path / "evaluation.json") == result
    assert result.context.startswith(
        "a context of 16 tokens, on the first 2 consecutive windows of held-out.txt, in bf16"
    )


def test_a_broken_checkpoint_is_called_broken(
    models: SimpleNamespace, dense: Path, text: Path, tmp_path: Path
) -> None:
    def load_broken(path: str | Path, **kwargs: object) -> object:
        model = models.load(path, **kwargs)
        if Path(path) == broken:
            model.model.norm.weight.data.fill_(math.nan)
        return model

    broken = models.save_model(tmp_path / "broken")
    result = evaluate(
        dense, [broken], text=text, load=load_broken, length=16, limit=2, device="cpu", speed=False
    )
    (row,) = result.candidates
    assert math.isinf(row.perplexity)
    assert "not finite" in row.notes[0]
    plain = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert plain["candidates"][0]["perplexity"] is None
    assert math.isinf(Evaluation.from_json(plain).candidates[0].perplexity)


def test_a_context_beyond_the_model_is_shortened_and_said(
    models: SimpleNamespace, dense: Path, text: Path
) -> None:
    result = evaluate(
        dense, [], text=text, load=models.load, length=4096, limit=500, device="cpu", speed=False
    )
    assert result.length == 128
    assert result.windows < 500
    assert "instead of 4096" in result.notes[0]
    assert "fewer than the 500" in result.notes[1]


def test_another_tokenizer_is_refused(
    models: SimpleNamespace, dense: Path, text: Path, tmp_path: Path
) -> None:
    other = models.save_model(tmp_path / "other")
    models.save_tokenizer(other, swap=True)
    with pytest.raises(UserError, match="another tokenizer"):
        evaluate(dense, [other], text=text, load=models.load, length=16, limit=1, device="cpu")


def test_another_vocabulary_is_refused(
    models: SimpleNamespace, dense: Path, text: Path, tmp_path: Path
) -> None:
    other = models.save_model(tmp_path / "other", vocabulary=models.vocabulary + 6)
    with pytest.raises(UserError, match="predicts 264 tokens and the reference 258"):
        evaluate(dense, [other], text=text, load=models.load, length=16, limit=1, device="cpu", speed=False)


def test_no_tokenizer_and_unknown_dtype_are_refused(
    models: SimpleNamespace, dense: Path, text: Path, tmp_path: Path
) -> None:
    bare = models.save_model(tmp_path / "bare")
    for file in bare.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError, match="no tokenizer"):
        evaluate(bare, [], text=text, load=models.load, length=16, device="cpu")
    with pytest.raises(UserError):
        evaluate(tmp_path / "nowhere", [], text=text, load=models.load, length=16, device="cpu")
    with pytest.raises(UserError, match="Unknown dtype fp23"):
        evaluate(dense, [], text=text, load=models.load, length=16, device="cpu", dtype="fp23")


def test_progress_reaches_the_end(models: SimpleNamespace, dense: Path, noisy: Path, text: Path) -> None:
    heard: list[tuple[str, int, int]] = []
    evaluate(
        dense,
        [noisy],
        text=text,
        load=models.load,
        length=16,
        limit=5,
        device="cpu",
        batch_size=2,
        speed=False,
        progress=lambda *call: heard.append(call),
    )
    assert heard == [(name, done, 5) for name in ("dense", "noisy") for done in (2, 4, 5)]
