"""The tokenizers that are compared with llama.cpp's: they split as they say, and their merges would show it if one did not."""

from __future__ import annotations

import json

import pytest

from benchmarks.servers.gguf_tokenizers import KINDS, TEXTS, tokenizer_table, trained
from compress.formats.gguf.pre_tokenizers import NAMES, pre_tokenizer_name, steps_of


@pytest.mark.parametrize(("steps", "name"), list(NAMES.items()), ids=list(NAMES.values()))
def test_a_byte_level_kind_is_what_its_name_says(
    steps: tuple[str, ...], name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = json.loads(KINDS[name]().to_str())
    assert steps_of(data["pre_tokenizer"]) == steps
    assert pre_tokenizer_name(data, tmp_path_factory.getbasetemp()) == name


def test_merges_cross_the_places_where_text_is_split() -> None:
    tokenizer = trained(KINDS["qwen2"]())
    crossing = [token for token in tokenizer.get_vocab() if token[:1].isalpha() and "Ġ" in token[1:]]
    assert crossing
    # The pre-tokenizer keeps them from being used.
    assert all("Ġ" not in piece[1:] for piece in tokenizer.tokenize("end of the line, and of the text"))


def test_texts_hold_no_special_token_and_bytes_fall_back() -> None:
    tokenizer = trained(KINDS["byte fallback, no space"]())
    assert not any(
        special in text for texts in TEXTS.values() for text in texts for special in ("<s>", "</s>")
    )
    assert tokenizer.tokenize("\U00010348") == ["<0xF0>", "<0x90>", "<0x8D>", "<0x88>"]


def test_the_table_counts_texts() -> None:
    rows = [{"tokenizer": "a", "texts": 5, "different": {"digits": ["1", "2"]}}]
    assert "3 of 5" in tokenizer_table(rows)
