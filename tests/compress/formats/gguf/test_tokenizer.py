"""A tokenizer as GGUF's metadata, and what llama.cpp cannot do, or does otherwise, in a sentence.

That what is written tokenizes alike is measured with llama.cpp itself (``benchmarks/servers/gguf_tokenizers``).
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from compress.errors import UserError
from compress.formats.gguf.pre_tokenizers import BYTES, DIGITS, GPT2, NAMES, steps_of
from compress.formats.gguf.tokenizer import tokenizer_metadata, tokenizer_notes
from compress.formats.gguf.tokenizer_checks import COMPILED, COMPOSED, LEADING_SPACE, compiled_letter

LETTERS = pre_tokenizers.ByteLevel.alphabet()
MADE: dict[str, Callable[[], Any]] = {
    GPT2: lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    BYTES: lambda: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    DIGITS: lambda: pre_tokenizers.Digits(individual_digits=True),
    "digits-together": lambda: pre_tokenizers.Digits(individual_digits=False),
    "punctuation": lambda: pre_tokenizers.Punctuation("contiguous"),
}


def splits(*steps: str) -> Any:
    made = [MADE[s]() if s in MADE else pre_tokenizers.Split(Regex(s), "isolated") for s in steps]
    return made[0] if len(made) == 1 else pre_tokenizers.Sequence(made)


def byte_level(
    *more: str, steps: tuple[str, ...] = (GPT2,), normalizer: Any = None, **options: Any
) -> Tokenizer:
    """A byte-level tokenizer with the tokens ``more`` of two letters beside the bytes."""
    vocabulary = {token: number for number, token in enumerate([*sorted(LETTERS), *more])}
    inner = Tokenizer(models.BPE(vocabulary, [(token[0], token[1:]) for token in more], **options))
    inner.pre_tokenizer = splits(*steps)
    inner.decoder = decoders.ByteLevel()
    if normalizer is not None:
        inner.normalizer = normalizer
    return inner


def pieces(*more: str, normalizer: Any = None, splitting: Any = None) -> Tokenizer:
    """A BPE tokenizer with byte fallback."""
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", *more]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges = [(token[0], token[1:]) for token in more]
    inner = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if normalizer is not None:
        inner.normalizer = normalizer
    if splitting is not None:
        inner.pre_tokenizer = splitting
    return inner


def unigram(*more: str, splitting: Any = None, normalizer: Any = None, **options: Any) -> Tokenizer:
    vocabulary = [(token, -float(number)) for number, token in enumerate(["<unk>", "▁", "a", "b", *more])]
    inner = Tokenizer(models.Unigram(vocabulary, **{"unk_id": 0, **options}))
    inner.pre_tokenizer = splitting or pre_tokenizers.Metaspace(prepend_scheme="never")
    if normalizer is not None:
        inner.normalizer = normalizer
    return inner


def by_words() -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])


ESCAPED = normalizers.Replace(" ", "▁")
PREFIXED = normalizers.Sequence([normalizers.Prepend("▁"), ESCAPED])


def metadata(inner: Tokenizer, folder: Path, **config: Any) -> dict[str, Any]:
    inner.save(str(folder / "tokenizer.json"))
    found = tokenizer_metadata(folder, config)
    return {name.removeprefix("tokenizer.ggml."): value.value for name, value in found.items()}


@pytest.mark.parametrize("steps", NAMES)
def test_every_pre_tokenizer_has_its_name(steps: tuple[str, ...], tmp_path: Path) -> None:
    ignoring = {"ignore_merges": True} if NAMES[steps] == "llama-bpe" else {}
    found = metadata(byte_level("ab", steps=steps, **ignoring), tmp_path)
    assert (found["model"], found["pre"]) == ("gpt2", NAMES[steps])
    assert found["merges"] == ["a b"]
    assert len(found["tokens"]) == 257
    assert tokenizer_notes(tmp_path) == ()


def test_an_expression_that_another_program_wrote_anew_is_still_known(tmp_path: Path) -> None:
    steps = next(steps for steps, name in NAMES.items() if name == "deepseek-llm")
    byte_level(steps=steps).save(str(tmp_path / "tokenizer.json"))
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    pattern = data["pre_tokenizer"]["pretokenizers"][1]["pattern"]
    pattern["Regex"] = pattern["Regex"].replace("\u1f7d", "\u03ce").replace("\u212a", "K")
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    assert tokenizer_metadata(tmp_path, {})["tokenizer.ggml.pre"].value == "deepseek-llm"


@pytest.mark.parametrize(("name", "token"), [("falcon", "Ġ1"), ("falcon", "½Ĩ"), ("deepseek-llm", "12")])
def test_a_token_across_which_text_is_split_is_refused(name: str, token: str, tmp_path: Path) -> None:
    steps = next(steps for steps, known in NAMES.items() if known == name)
    with pytest.raises(UserError, match=f"would find the token '{token}'"):
        metadata(byte_level(token, steps=steps), tmp_path)
    for fine in ("Ġa", "12") if name == "falcon" else ("Ġ1", "Â½"):
        assert metadata(byte_level(fine, steps=steps), tmp_path)["pre"] == name


@pytest.mark.parametrize(
    "node",
    [
        pre_tokenizers.ByteLevel(add_prefix_space=True),
        pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "removed"), MADE[BYTES]()]),
        pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), MADE[GPT2]()]),
        pre_tokenizers.Whitespace(),
    ],
)
def test_other_splits_are_refused(node: Any, tmp_path: Path) -> None:
    inner = byte_level()
    inner.pre_tokenizer = node
    with pytest.raises(UserError, match="has no pre-tokenizer that splits text as this one does"):
        metadata(inner, tmp_path)
    assert steps_of(json.loads((tmp_path / "tokenizer.json").read_text())["pre_tokenizer"]) not in NAMES


def test_normalizers_of_byte_level_tokenizers(tmp_path: Path) -> None:
    metadata(byte_level(normalizer=normalizers.NFC()), tmp_path)
    assert tokenizer_notes(tmp_path) == (COMPOSED.format(form="NFC"),)
    with pytest.raises(UserError, match="does not normalize"):
        metadata(byte_level(normalizer=normalizers.Lowercase()), tmp_path)
    with pytest.raises(UserError, match="'end_of_word_suffix'"):
        metadata(byte_level(end_of_word_suffix="</w>"), tmp_path)


@pytest.mark.parametrize(
    ("normalizer", "splitting", "adds", "notes"),
    [
        (ESCAPED, None, False, ()),
        (PREFIXED, None, True, ()),
        (ESCAPED, pre_tokenizers.Split(" ", "merged_with_previous"), False, ()),
        (None, pre_tokenizers.Metaspace(prepend_scheme="never", split=False), False, ()),
        (None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False), True, (LEADING_SPACE,)),
        (None, pre_tokenizers.Metaspace(prepend_scheme="always"), True, (LEADING_SPACE,)),
    ],
)
def test_byte_fallback_with_and_without_a_space(
    normalizer: Any, splitting: Any, adds: bool, notes: tuple[str, ...], tmp_path: Path
) -> None:
    found = metadata(pieces("▁a", "ab", normalizer=normalizer, splitting=splitting), tmp_path)
    assert (found["model"], found["add_space_prefix"]) == ("llama", adds)
    assert found["scores"][-2:] == [0.0, -1.0]
    assert found["token_type"][:2] == [2, 6]
    assert tokenizer_notes(tmp_path) == notes


@pytest.mark.parametrize(
    ("inner", "sentence"),
    [
        (lambda: pieces(), "turns spaces into ▁, which this tokenizer does not"),
        (lambda: pieces(normalizer=normalizers.Sequence([normalizers.NFKC(), ESCAPED])), "does not normalize"),
        (lambda: pieces(normalizer=ESCAPED, splitting=pre_tokenizers.Digits()), "does not split text"),
        (lambda: pieces("a▁", splitting=pre_tokenizers.Metaspace()), "'a▁', which lies across two words"),
        (lambda: pieces("▁▁", splitting=pre_tokenizers.Metaspace()), "would join spaces"),
        (lambda: pieces(splitting=pre_tokenizers.Metaspace(replacement="_")), "turns spaces into ▁ alone"),
        (lambda: unigram(byte_fallback=True), "falls back to bytes"),
        (lambda: unigram(normalizer=normalizers.NFKC()), "does not normalize"),
        (lambda: unigram(splitting=pre_tokenizers.Whitespace()), "does not split"),
        (lambda: unigram("▁▁", splitting=pre_tokenizers.Metaspace(split=False)), "run of spaces"),
        (lambda: unigram(splitting=by_words()), "does not split"),
        (lambda: Tokenizer(models.WordPiece({"a": 0}, unk_token="a")), "tokenizer of type WordPiece"),
    ],
)  # fmt: skip
def test_what_llama_cpp_cannot_do_is_refused(
    inner: Callable[[], Tokenizer], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=rf"tokenizer\.json: .*{sentence}"):
        metadata(inner(), tmp_path)


def test_a_unigram_tokenizer_keeps_its_log_probabilities(tmp_path: Path) -> None:
    inner = unigram("▁a")
    inner.add_special_tokens(["<s>"])
    found = metadata(inner, tmp_path, vocab_size=8)
    assert (found["model"], found["pre"]) == ("t5", "default")
    assert found["tokens"] == ["<unk>", "▁", "a", "b", "▁a", "<s>", "[PAD6]", "[PAD7]"]
    assert found["scores"] == [0.0, -1.0, -2.0, -3.0, -4.0, 0.0, 0.0, 0.0]
    assert found["token_type"] == [2, 1, 1, 1, 1, 3, 5, 5]
    assert (found["add_space_prefix"], found["remove_extra_whitespaces"]) == (False, False)
    metadata(unigram(splitting=pre_tokenizers.Metaspace(prepend_scheme="always")), tmp_path)
    assert tokenizer_notes(tmp_path) == (LEADING_SPACE,)


def compiled(letters: str) -> bytes:
    """A normalization as SentencePiece compiles it, which turns each of some ASCII letters into a space."""
    units = [0] * 1024
    units[0] = 256 << 10
    for place, letter in enumerate(map(ord, letters)):
        node, value = 256 ^ letter, 600 + place
        units[node] = (node ^ value) << 10 | 1 << 8 | letter
        units[value] = 1 << 31
    return struct.pack(f"<I{len(units)}I", 4 * len(units), *units) + b" \0"


def test_the_compiled_normalization_goes_along(tmp_path: Path) -> None:
    def found(inner: Tokenizer, normalization: bytes) -> dict[str, Any]:
        inner.save(str(tmp_path / "tokenizer.json"))
        data = json.loads((tmp_path / "tokenizer.json").read_text())
        listed = base64.b64encode(normalization).decode()
        data["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": listed}
        (tmp_path / "tokenizer.json").write_text(json.dumps(data))
        return {name: value.value for name, value in tokenizer_metadata(tmp_path, {}).items()}

    made = found(unigram(), compiled(""))
    assert bytes(made["tokenizer.ggml.precompiled_charsmap"]) == compiled("")
    assert not made["tokenizer.ggml.remove_extra_whitespaces"]
    assert tokenizer_notes(tmp_path) == (COMPILED,)
    assert found(unigram(splitting=by_words()), compiled("\t\n\r"))["tokenizer.ggml.remove_extra_whitespaces"]
    for incomplete in (compiled("\t\r"), compiled("\t\n\r")[:2000], b"\4\0\0\0"):
        with pytest.raises(UserError, match="does not split"):  # llama.cpp drops spaces alone
            found(unigram(splitting=by_words()), incomplete)


def test_a_compiled_letter_is_the_library_s() -> None:
    library = normalizers.Precompiled(compiled("\t\n\r"))
    for letter in "\t\n\rab ":
        ours = compiled_letter(compiled("\t\n\r"), ord(letter))
        assert library.normalize_str(letter) == (letter if ours is None else ours.decode())
