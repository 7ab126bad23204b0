from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

from compress.errors import UserError
from compress.evaluation.needle import NUMBERS, find_needle, make_needle

HAY = [40 + index % 30 for index in range(50)]


@pytest.mark.parametrize("bos", [False, True])
def test_a_needle_lies_at_its_depth_and_is_asked_for_at_the_end(dense: Path, bos: bool) -> None:
    tokenizer = AutoTokenizer.from_pretrained(dense)
    needle = make_needle(tokenizer, HAY, 300, bos=bos)
    assert needle.context == 300
    for tokens, answer, number, depth in zip(
        needle.tokens, needle.answers, NUMBERS, (0.1, 0.5, 0.9), strict=True
    ):
        assert len(tokens) == 300
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        assert text.endswith(f"The secret number is {number}")
        assert tokenizer.decode(tokens[-answer:]).strip() == str(number)
        said, asked = f"\nThe secret number is {number}.\n", f"\nThe secret number is {number}"
        hay = len(text) - len(said) - len(asked)
        assert text.index(said) / hay == pytest.approx(depth, abs=0.02)


def test_it_is_never_longer_than_four_thousand_and_needs_room(dense: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(dense)
    assert make_needle(tokenizer, HAY, 100_000).context == 4096
    with pytest.raises(UserError, match="no room for a needle"):
        make_needle(tokenizer, HAY, 40)


class Oracle(torch.nn.Module):
    """Knows the next token everywhere, but at ``blind`` of the depths is even about all of them."""

    device = torch.device("cpu")

    def __init__(self, blind: int) -> None:
        super().__init__()
        self.blind = blind

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> SimpleNamespace:
        self.blind -= 1
        logits = torch.zeros(*input_ids.shape, 300)
        if self.blind < 0:
            logits.scatter_(2, input_ids.roll(-1, 1)[..., None], 50.0)
        return SimpleNamespace(logits=logits)


def test_what_is_found_is_counted(dense: Path) -> None:
    needle = make_needle(AutoTokenizer.from_pretrained(dense), HAY, 200)
    all_found = find_needle(Oracle(0), needle)  # type: ignore[arg-type]
    assert (all_found.found, all_found.of, all_found.context) == (3, 3, 200)
    assert all_found.nll == pytest.approx(0.0, abs=1e-6)
    one_blind = find_needle(Oracle(1), needle)  # type: ignore[arg-type]
    assert one_blind.found == 2
    assert one_blind.nll == pytest.approx(math.log(300) / 3, rel=1e-3)


def test_only_the_last_logits_are_asked_for_where_a_model_can(models: SimpleNamespace, dense: Path) -> None:
    model = models.load(dense, dtype=torch.float32, device=torch.device("cpu")).eval()
    tokens = make_needle(AutoTokenizer.from_pretrained(dense), HAY, 120)
    found = find_needle(model, tokens)
    nll = 0.0
    for ids, answer in zip(tokens.tokens, tokens.answers, strict=True):
        with torch.no_grad():
            scores = model(ids[None]).logits[0].double().log_softmax(-1)
        nll -= float(sum(scores[at - 1, ids[at]] for at in range(len(ids) - answer, len(ids))))
    assert found.nll == pytest.approx(nll / sum(tokens.answers), rel=1e-4)
