"""A checkpoint is opened as its users open it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertModel

import compress
from compress.checkpoint.source import open_source
from compress.errors import UserError
from compress.verification import fresh_process
from compress.verification.fresh_process import check_opens


@pytest.fixture
def written(tiny_model: Callable[..., Path], tmp_path: Path) -> Path:
    compress.compress(tiny_model("llama"), "w4-rtn", tmp_path / "out", device="cpu")
    return tmp_path / "out"


def test_compressed_tensors_and_our_own_form(
    written: Path, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    compress.verify(written, tiny_model("llama"), fresh_process=True)
    compress.compress(
        tiny_model("llama"), "w4-rtn", tmp_path / "own", device="cpu", settings={"format": "native"}
    )
    check_opens(tmp_path / "own", open_source(tiny_model("llama")))


def test_other_logits_and_unset_parameters_are_told_of(
    written: Path, tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(tiny_model("llama"))
    script = fresh_process._SCRIPT
    changed = script.replace('save({"outputs": outputs', 'save({"outputs": -outputs')
    monkeypatch.setattr(fresh_process, "_SCRIPT", changed)
    with pytest.raises(UserError, match="computes something else in a fresh process"):
        check_opens(written, source)
    unset = script.replace('info["missing_keys"]', '["model.norm.weight"]')
    monkeypatch.setattr(fresh_process, "_SCRIPT", unset)
    with pytest.raises(UserError, match=r"leaves model\.norm\.weight at random values"):
        check_opens(written, source)


def test_a_process_that_fails_is_told_of(
    written: Path, tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fresh_process, "_SCRIPT", "raise ValueError('of transformers')")
    with pytest.raises(UserError, match="does not open it in a fresh process: ValueError: of transformers"):
        check_opens(written, open_source(tiny_model("llama")))


def test_an_embedding_model_without_pooler_is_compared_by_its_hidden_states(
    tmp_path: Path,
) -> None:
    config = BertConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    )
    torch.manual_seed(0)
    BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "bert")
    compress.compress(
        tmp_path / "bert", "w4-rtn", tmp_path / "out", device="cpu", settings={"quantize.group_size": 32}
    )
    check_opens(tmp_path / "out", open_source(tmp_path / "bert"))


def test_both_models_are_asked_about_a_sentence(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    """The first ids of a vocabulary are marks that no text holds together: there models stand between two answers."""
    folder = tiny_model("llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    wanted = tokenizer(fresh_process.SENTENCE)["input_ids"][:16]
    assert len(set(wanted)) >= 8
    sentence, nothing = (fresh_process._sentence(each, trusted=False) for each in (folder, tmp_path))
    assert fresh_process._ids(sentence, 256) == wanted
    assert fresh_process._ids(sentence, 100) == [one % 100 for one in wanted]
    assert fresh_process._ids(nothing, 4096) == list(range(0, 4096, 256))
    assert fresh_process._ids(nothing, 10) == list(range(10))
