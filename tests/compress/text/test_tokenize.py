"""Tokens of documents: pieces, limits, templates, BOS."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from compress.errors import UserError
from compress.text.records import Messages, TokenIds
from compress.text.tokenize import adds_bos, encode, join_tokens, load_tokenizer, resolve_bos


def bytes_tokenizer(*, bos: bool = False, habit: bool = False) -> PreTrainedTokenizerFast:
    """One token for each byte; with BOS, and the habit of putting it first."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<eos>", "<bos>"])
    if habit:
        inner.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", 257)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<eos>", bos_token="<bos>" if bos else None
    )


def test_pieces_give_the_tokens_of_the_whole() -> None:
    tokenizer, text = bytes_tokenizer(), "one line\n" * 50
    whole = join_tokens([text], tokenizer, "it", piece_characters=None)
    assert join_tokens([text], tokenizer, "it", piece_characters=40) == whole
    assert tokenizer.decode(whole) == text


def test_a_limit_ends_the_reading() -> None:
    tokenizer = bytes_tokenizer()

    def documents() -> object:
        yield "abc"
        yield "defgh"
        raise AssertionError("not to be read")

    assert tokenizer.decode(join_tokens(documents(), tokenizer, "it", limit=6)) == "abc<eos>de"


def test_ids_are_taken_as_they_are_and_bos_is_dropped_where_windows_have_it() -> None:
    tokenizer = bytes_tokenizer(bos=True)
    documents = [TokenIds((257, 5)), TokenIds((257, 6))]
    assert join_tokens(documents, tokenizer, "it").tolist() == [257, 5, 256, 257, 6]
    assert join_tokens(documents, tokenizer, "it", bos=True).tolist() == [5, 256, 6]


def test_conversations_go_through_the_template() -> None:
    tokenizer = bytes_tokenizer()
    chat = Messages(({"role": "user", "content": "hello"},))
    with pytest.raises(UserError, match="no chat template"):
        join_tokens([chat], tokenizer, "it")
    tokenizer.chat_template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    assert tokenizer.decode(join_tokens([chat], tokenizer, "it")) == "[hello]"
    tokenizer.chat_template = "{{ raise_exception('x' * 100000) }}"
    with pytest.raises(UserError, match="refuses") as refused:
        join_tokens([chat], tokenizer, "it")
    assert len(str(refused.value)) < 400


def test_no_tokens_are_refused() -> None:
    with pytest.raises(UserError, match="is empty"):
        join_tokens([], bytes_tokenizer(), "it")


@pytest.mark.parametrize(
    ("bos", "habit", "own"), [(False, False, False), (True, False, False), (True, True, True)]
)
def test_bos_by_habit(bos: bool, habit: bool, own: bool) -> None:
    tokenizer = bytes_tokenizer(bos=bos, habit=habit)
    assert adds_bos(tokenizer) is own
    assert resolve_bos(None, tokenizer) is own
    assert resolve_bos(False, tokenizer) is False
    if bos:
        assert resolve_bos(True, tokenizer) is True
    else:
        with pytest.raises(UserError, match="no BOS token"):
            resolve_bos(True, tokenizer)


@pytest.mark.parametrize(
    "content",
    ["", "{}", "[]", "null", '{"model": 3}', '{"version": "1.0", "model": {"type": "None"}}', "[" * 100_000],
)
def test_a_damaged_tokenizer_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(UserError, match="no tokenizer that loads") as refused:
        load_tokenizer(tmp_path)
    assert len(str(refused.value)) < 600


def test_a_tokenizer_that_fails_on_a_text_is_refused() -> None:
    """The Rust library raises a bare ``Exception`` where a vocabulary lacks the token for unknown words."""
    inner = Tokenizer(models.WordPiece(vocab={"a": 0}, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    assert encode(tokenizer, "a") == [0]
    with pytest.raises(UserError, match=r"cannot split a text \(WordPiece error: Missing \[UNK\]"):
        encode(tokenizer, "b")
    with pytest.raises(UserError, match="cannot split a text"):
        join_tokens(["a", "b"], tokenizer, "it")


def test_encode_adds_special_tokens_on_demand() -> None:
    tokenizer = bytes_tokenizer(bos=True, habit=True)
    assert encode(tokenizer, "ab")[0] == 257
    assert encode(tokenizer, "ab")[1:] == encode(tokenizer, "ab", special_tokens=False)
