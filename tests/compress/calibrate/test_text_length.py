"""A text that is too short is refused by a look at as much of it as the answer takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from compress.assets import embedded_model
from compress.calibrate import text_length
from compress.calibrate.text_length import check_text_length, check_two_windows
from compress.errors import UserError


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(embedded_model())
    return found


@pytest.fixture
def ids(tmp_path: Path) -> str:
    """A text of 20 token ids."""
    file = tmp_path / "ids.jsonl"
    file.write_text(json.dumps([5] * 20) + "\n")
    return str(file)


def test_a_text_of_one_window_is_enough(tokenizer: PreTrainedTokenizerBase, ids: str) -> None:
    assert check_text_length(ids, tokenizer, length=20, bos=False) == 20
    assert check_text_length(ids, tokenizer, length=21, bos=True) == 20
    for length, bos in ((21, False), (22, True)):
        with pytest.raises(UserError, match=f"has 20 tokens, fewer than one sequence of {length}"):
            check_text_length(ids, tokenizer, length=length, bos=bos)


def test_two_windows_are_needed_where_one_is_held_out(tokenizer: PreTrainedTokenizerBase, ids: str) -> None:
    check_two_windows(ids, tokenizer, length=10, bos=False)
    check_two_windows(ids, tokenizer, length=11, bos=True)
    for length, bos in ((11, False), (12, True)):
        with pytest.raises(UserError, match=f"has 20 tokens, fewer than two sequences of {length}"):
            check_two_windows(ids, tokenizer, length=length, bos=bos)


def test_no_more_is_counted_than_is_asked_for(tokenizer: PreTrainedTokenizerBase, ids: str) -> None:
    assert check_text_length(ids, tokenizer, length=4, windows=3, bos=False) == 12
    assert check_text_length(ids, tokenizer, length=4, windows=9, bos=False) == 20


def test_a_long_file_is_read_at_its_beginning_alone(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "long.txt"
    file.write_text("one two three four\n" * 5000)
    monkeypatch.setattr(text_length.Documents, "all", lambda self: pytest.fail("the whole file was read"))
    assert check_text_length(str(file), tokenizer, length=32, bos=False) == 32


def test_a_file_of_few_tokens_and_many_bytes_is_read_to_its_end(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    file = tmp_path / "padded.jsonl"
    line = json.dumps({"input_ids": [5] * 4, "padding": "x" * 1000})
    file.write_text(f"{line}\n" * 4)
    assert check_text_length(str(file), tokenizer, length=15, bos=False) == 15


def test_a_dataset_of_the_hub_is_not_loaded(tokenizer: PreTrainedTokenizerBase) -> None:
    assert check_text_length("some/dataset", tokenizer, length=32) is None
