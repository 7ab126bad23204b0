"""Text comes whole, whatever the tokens' borders, and nothing of a stop is let out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from compress.assets import embedded_model
from compress.serve.text_stream import TextStream

TEXT = "déjà vu: 日本語 🙂 def f(x):\n    return x"


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Callable[..., Path]) -> PreTrainedTokenizerBase:
    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(embedded_model())
    return found


def _pieces(tokenizer: PreTrainedTokenizerBase, text: str, stops: Sequence[str] = ()) -> list[str]:
    stream = TextStream(tokenizer, tokenizer("before ")["input_ids"], stops)
    pieces = [stream.push(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
    return [*pieces, stream.flush()]


def test_pieces_are_whole_characters(tokenizer: PreTrainedTokenizerBase) -> None:
    pieces = _pieces(tokenizer, TEXT)
    assert "".join(pieces) == TEXT
    assert len([piece for piece in pieces if piece]) > 8
    assert not any("\ufffd" in piece for piece in pieces)


def test_half_a_character_comes_at_the_end(tokenizer: PreTrainedTokenizerBase) -> None:
    stream = TextStream(tokenizer, [], ())
    ids = tokenizer("🙂", add_special_tokens=False)["input_ids"][:-1]
    assert [stream.push(token) for token in ids] == [""] * len(ids)
    assert set(stream.flush()) == {"\ufffd"}


@pytest.mark.parametrize("stop", ["def", "本", "🙂", "):\n", "x", " "])
def test_a_stop_and_what_follows_are_left_out(tokenizer: PreTrainedTokenizerBase, stop: str) -> None:
    assert "".join(_pieces(tokenizer, TEXT, ["nowhere", stop])) == TEXT[: TEXT.index(stop)]


def test_the_first_of_several_stops(tokenizer: PreTrainedTokenizerBase) -> None:
    assert "".join(_pieces(tokenizer, TEXT, ["return", "vu", "f(x)"])) == "déjà "


def test_what_only_begins_like_a_stop_is_let_out(tokenizer: PreTrainedTokenizerBase) -> None:
    pieces = _pieces(tokenizer, TEXT, ["def f(y)", "return x!"])
    assert "".join(pieces) == TEXT
    assert pieces[-1].endswith("return x")


def test_special_tokens_are_no_text(tokenizer: PreTrainedTokenizerBase) -> None:
    stream = TextStream(tokenizer, [], ())
    assert stream.push(tokenizer.eos_token_id) + stream.flush() == ""
