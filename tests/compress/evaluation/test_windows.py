from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from compress.errors import UserError
from compress.evaluation.windows import check_same_tokenizer, read_documents, text_windows
from compress.text.records import TokenIds


@pytest.fixture(scope="module")
def tokenizer(dense: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(dense)


def test_windows_are_consecutive(tokenizer: PreTrainedTokenizerBase) -> None:
    windows = text_windows("abcdefghij", tokenizer, length=4)
    assert [tokenizer.decode(window) for window in windows] == ["abcd", "efgh"]


def test_a_limit_reads_a_prefix_and_gives_the_same(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "the quick brown fox — jumps\n" * 500
    assert text_windows(text, tokenizer, length=8, limit=3).equal(text_windows(text, tokenizer, length=8)[:3])


def test_each_window_may_begin_with_bos(tokenizer: PreTrainedTokenizerBase) -> None:
    windows = text_windows("abcdefghij", tokenizer, length=4, bos=True)
    assert [tokenizer.decode(window) for window in windows] == ["<s>abc", "<s>def", "<s>ghi"]


def test_a_text_shorter_than_a_window_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UserError, match="5 tokens, fewer than one window of 6"):
        text_windows("abcde", tokenizer, length=6)


@pytest.mark.parametrize(("length", "limit"), [(1, None), (4, 0)])
def test_nothing_to_measure_is_refused(
    tokenizer: PreTrainedTokenizerBase, length: int, limit: int | None
) -> None:
    with pytest.raises(UserError, match="take"):
        text_windows("abcdefghij", tokenizer, length=length, limit=limit)


def test_documents_are_joined_with_eos_and_their_own_bos_gives_way(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    documents = ["ab", TokenIds((tokenizer.bos_token_id, *tokenizer("cdef")["input_ids"]))]
    (plain,) = text_windows(documents, tokenizer, length=8)
    assert tokenizer.decode(plain) == "ab</s><s>cdef"
    windows = text_windows(documents, tokenizer, length=4, bos=True)
    assert [tokenizer.decode(window) for window in windows] == ["<s>ab</s>", "<s>cde"]


def test_documents_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "one"}\n\n{"text": "two"}\n', encoding="utf-8")
    assert read_documents(path) == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", None, "cannot be read"),
        ("a.txt", b" \n", "is empty"),
        ("a.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n{"txt": 1}', "Line 2"),
        ("a.jsonl", b'{"text": 3}', "must be a string"),
    ],
)
def test_unusable_files_are_refused(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_documents(path)


class _Words:
    """A tokenizer of whole words."""

    def __init__(self, *words: str) -> None:
        self.words = words

    def __len__(self) -> int:
        return len(self.words)

    def get_vocab(self) -> dict[str, int]:
        return {word: index for index, word in enumerate(self.words)}

    def __call__(self, text: str, add_special_tokens: bool, verbose: bool) -> dict[str, list[int]]:
        return {"input_ids": [self.words.index(word) for word in text.split()]}


def test_tokens_more_than_the_reference_has_are_no_other_tokenizer() -> None:
    reference = _Words("a", "b")
    check_same_tokenizer(reference, _Words("a", "b", "<pad>"), "other", "a b")  # type: ignore[arg-type]
    for other in (_Words("a"), _Words("b", "a"), _Words("<pad>", "a", "b")):
        with pytest.raises(UserError, match="another tokenizer"):
            check_same_tokenizer(reference, other, "other", "a")  # type: ignore[arg-type]
