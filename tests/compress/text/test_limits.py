"""Windows and tokens that a model cannot take."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, MambaConfig, PretrainedConfig

from compress.errors import UserError
from compress.text.limits import check_token_ids, embedding_rows, fit_length


@pytest.mark.parametrize(
    ("config", "length", "fitted"),
    [
        (LlamaConfig(max_position_embeddings=1024), 2048, 1024),
        (LlamaConfig(max_position_embeddings=1024), 1024, 1024),
        (GPT2Config(n_positions=512), 2048, 512),
        (MambaConfig(), 2048, 2048),
        (PretrainedConfig(max_position_embeddings=None), 64, 64),
        (PretrainedConfig(max_position_embeddings=0), 64, 64),
    ],
)
def test_windows_are_shortened_with_a_sentence(config: PretrainedConfig, length: int, fitted: int) -> None:
    found, note = fit_length(config, length)
    assert found == fitted
    assert bool(note) is (found != length)
    if note:
        assert f"{fitted} tokens" in note
        assert str(length) in note


def test_ids_beyond_the_embedding_are_refused() -> None:
    check_token_ids(torch.tensor([[0, 95]]), 96, "a.txt")
    check_token_ids(torch.empty(0, dtype=torch.int64), 96, "a.txt")
    with pytest.raises(UserError, match=r"a.txt has the token id 96, .* only 96 rows"):
        check_token_ids(torch.tensor([[0, 96]]), 96, "a.txt")


def test_rows_of_the_embedding() -> None:
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(vocab_size=70, n_embd=8, n_layer=1, n_head=2))
        model.resize_token_embeddings(80, mean_resizing=False)
    assert embedding_rows(model) == 80
