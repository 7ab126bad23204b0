"""Windows of text: where they come from, that they repeat under a seed, and what is said of bad text."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from compress.calibrate.corpus import load_apart, load_corpus, load_tokens
from compress.errors import UserError

EOS = 256
WORDS = " ".join(f"word{number}" for number in range(200))


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte, and an end of sequence."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "words.txt"
    path.write_text(WORDS, encoding="utf-8")
    return path


def lines(path: Path, *entries: Any) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return path


def test_windows_of_a_text_file(text: Path, tokenizer: Any) -> None:
    found = load_corpus(str(text), tokenizer, samples=5, length=32, seed=3)
    assert found.tokens.shape == (5, 32)
    assert found.tokens.dtype == torch.int64
    assert found.tokens_available == len(WORDS)
    assert found.note == ""
    assert all(tokenizer.decode(row) in WORDS for row in found.tokens)


def test_the_seed_decides(text: Path, tokenizer: Any) -> None:
    first, again, other = (
        load_tokens(str(text), tokenizer, samples=5, length=32, seed=seed) for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_short_text_is_used_and_said(text: Path, tokenizer: Any) -> None:
    found = load_corpus(str(text), tokenizer, samples=1000, length=32, seed=0)
    assert found.tokens.shape == (1000, 32)
    assert "overlap" in found.note


def test_documents_of_jsonl_are_joined_with_eos(tmp_path: Path, tokenizer: Any) -> None:
    path = lines(tmp_path / "a.jsonl", {"text": "abc"}, {"text": "de", "id": 1})
    (row,) = load_tokens(str(path), tokenizer, samples=1, length=6, seed=0)
    assert tokenizer.decode(row) == "abc<eos>de"


def test_messages_go_through_the_chat_template(tmp_path: Path, tokenizer: Any) -> None:
    path = lines(tmp_path / "a.jsonl", {"messages": [{"role": "user", "content": "hello"}]})
    with pytest.raises(UserError, match="chat template"):
        load_tokens(str(path), tokenizer, samples=1, length=7, seed=0)
    tokenizer.chat_template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    (row,) = load_tokens(str(path), tokenizer, samples=1, length=7, seed=0)
    assert tokenizer.decode(row) == "[hello]"


def test_the_embedded_text(tokenizer: Any) -> None:
    found = load_corpus("embedded", tokenizer, samples=2, length=128, seed=0)
    assert found.tokens.shape == (2, 128)
    assert found.tokens_available >= 2 * 128


@pytest.mark.parametrize("suffix", ["txt", "jsonl"])
def test_of_a_large_file_only_excerpts_are_read(suffix: str, tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / f"large.{suffix}"
    entries = [f"Zeile {number} mit Ümläuten. " * 5 for number in range(3000)]
    if suffix == "txt":
        path.write_text("".join(entries), encoding="utf-8")
    else:
        lines(path, *({"text": entry} for entry in entries))
    first, again = (load_corpus(str(path), tokenizer, samples=4, length=64, seed=0) for _ in range(2))
    assert torch.equal(first.tokens, again.tokens)
    assert first.tokens_available <= 5 * (1 << 12)
    whole = "<eos>".join(entries) if suffix == "jsonl" else "".join(entries)
    assert all(tokenizer.decode(row).strip("�") in whole for row in first.tokens)
    assert len({tuple(row.tolist()) for row in first.tokens}) == 4


def test_windows_begin_with_bos_as_asked_or_by_habit(text: Path, tokenizer: Any) -> None:
    with pytest.raises(UserError, match="no BOS token"):
        load_corpus(str(text), tokenizer, samples=2, length=8, seed=0, bos=True)
    plain = load_corpus(str(text), tokenizer, samples=2, length=8, seed=0)
    assert not plain.bos
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    assert torch.equal(load_tokens(str(text), tokenizer, samples=2, length=8, seed=0), plain.tokens)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
    )
    for asked in (None, True):
        found = load_corpus(str(text), tokenizer, samples=2, length=9, seed=0, bos=asked)
        assert found.bos
        assert found.tokens[:, 0].tolist() == [tokenizer.bos_token_id] * 2
        assert torch.equal(found.tokens[:, 1:], plain.tokens)
    found = load_corpus(str(text), tokenizer, samples=2, length=8, seed=0, bos=False)
    assert torch.equal(found.tokens, plain.tokens)


def test_an_array_of_documents_is_read_whole_however_large(tmp_path: Path, tokenizer: Any) -> None:
    entries = [{"text": f"Zeile {number}. " * 5} for number in range(3000)]
    path = tmp_path / "all.json"
    path.write_text(json.dumps(entries), encoding="utf-8")
    found = load_corpus(str(path), tokenizer, samples=2, length=64, seed=0)
    assert found.tokens_available == len("<".join(entry["text"] for entry in entries))


def test_what_is_wrong_with_a_text_is_said(tmp_path: Path, text: Path, tokenizer: Any) -> None:
    def refused(data: object, match: str, length: int = 32, by: Any = tokenizer) -> None:
        with pytest.raises(UserError, match=match):
            load_tokens(str(data), by, samples=2, length=length, seed=0)

    empty, broken, binary = tmp_path / "empty.txt", tmp_path / "broken.jsonl", tmp_path / "binary.txt"
    empty.touch()
    broken.write_text('{"text": "fine"}\n{"text": \n', encoding="utf-8")
    binary.write_bytes(b"abc\xff\xfe")
    refused(tmp_path / "none.txt", "no text file")
    refused(tmp_path, "is a folder")
    refused(empty, "is empty")
    refused(text, f"has {len(WORDS)} tokens, fewer than one sequence of 5000", length=5000)
    refused(broken, "Line 2 .* no JSON")
    refused(lines(tmp_path / "b.jsonl", {"text": "a"}, {"body": "b"}), 'Line 2 .* neither a "text"')
    refused(binary, "not UTF-8")
    refused(text, "without a tokenizer", by=None)


class _Rows(list[dict[str, Any]]):
    @property
    def column_names(self) -> list[str]:
        return list(self[0])


def test_a_hub_dataset_by_name(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []
    rows = _Rows({"text": f"row {number} ", "body": "B" * 40} for number in range(300))

    def load_dataset(name: str, config: str | None, split: str) -> _Rows:
        asked.append((name, config, split))
        if name != "owner/set":
            raise FileNotFoundError(f"no dataset {name}\nmore")
        return rows

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    tokens = load_tokens("owner/set", tokenizer, samples=2, length=32, seed=0)
    assert "row" in tokenizer.decode(tokens[0])
    tokens = load_tokens("owner/set:en:test:body", tokenizer, samples=2, length=32, seed=0)
    assert set(tokenizer.decode(tokens[0]).replace("<eos>", "")) == {"B"}
    assert asked == [("owner/set", None, "train"), ("owner/set", "en", "test")]
    with pytest.raises(UserError, match="no column title; it has text, body"):
        load_tokens("owner/set:::title", tokenizer, samples=2, length=32, seed=0)
    with pytest.raises(UserError, match=r"neither a file nor a dataset .*no dataset other\)"):
        load_tokens("other", tokenizer, samples=2, length=32, seed=0)


def test_without_the_package_for_datasets(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="compress-llm\\[hub\\]"):
        load_tokens("owner/set", tokenizer, samples=2, length=32, seed=0)


def test_windows_to_train_on_and_held_out_ones_share_no_token(tmp_path: Path, tokenizer: Any) -> None:
    """The text counts up, so that a token says where it stands."""
    text = " ".join(str(number) for number in range(3000))
    path = tmp_path / "text.txt"
    path.write_text(text)

    def places(available: int, length: int, count: int, generator: torch.Generator) -> torch.Tensor:
        return torch.tensor([0, available - length, available // 2])[:count]

    train, judge = load_apart(
        str(path), tokenizer, samples=3, held_out=4, length=16, seed=0, places=places, bos=False
    )
    whole = load_corpus(str(path), tokenizer, samples=1, length=16, seed=0, bos=False).tokens_available
    assert train.tokens.shape == (3, 16)
    assert judge.tokens.shape == (4, 16)
    assert train.tokens_available + judge.tokens_available == whole
    assert judge.tokens_available >= whole // 10
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
    cut = train.tokens_available
    assert torch.equal(train.tokens[1], ids[cut - 16 : cut])
    assert torch.equal(judge.tokens[0], ids[cut : cut + 16])
    assert torch.equal(judge.tokens[-1], ids[-16:])


@pytest.mark.parametrize(("held_out", "refused"), [(64, False), (100, True)])
def test_more_windows_than_the_end_has_places_are_not_held_out(
    tmp_path: Path, tokenizer: Any, held_out: int, refused: bool
) -> None:
    path = tmp_path / "text.txt"
    path.write_text("a b c d " * 20)

    def draw() -> torch.Tensor:
        return load_apart(
            str(path),
            tokenizer,
            samples=1,
            held_out=held_out,
            length=16,
            seed=0,
            places=lambda *a: torch.zeros(1, dtype=torch.int64),
            bos=False,
        )[1].tokens

    if not refused:
        assert draw().shape == (held_out, 16)
        return
    with pytest.raises(
        UserError, match="places for windows of 16 tokens, fewer than the 100 that are to be held out"
    ):
        draw()


def test_a_text_of_less_than_two_windows_cannot_be_held_out(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "text.txt"
    path.write_text("a few words")
    with pytest.raises(UserError, match="fewer than two sequences"):
        load_apart(
            str(path),
            tokenizer,
            samples=1,
            held_out=1,
            length=64,
            seed=0,
            places=lambda *a: torch.zeros(1),
            bos=False,
        )
