"""Token ids of llama.cpp against those of transformers, on awkward text.

``python -m benchmarks.servers.gguf_tokenizers --llama.cpp PYTHON [--tokenizer FOLDER …]`` trains a small tokenizer of each kind
that GGUF expresses (every byte-level pre-tokenizer that llama.cpp has a name for, and BPE with byte fallback as SentencePiece
models have it), puts it into a GGUF file with a tiny random model, and has llama.cpp tokenize :data:`TEXTS` with it.
``--tokenizer`` adds tokenizers from folders. Results go to ``benchmarks/results/gguf-tokenizers.json``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from benchmarks.common import table, write_results
from benchmarks.servers.programs import run_llamacpp
from compress import export
from compress.assets import embedded_model, embedded_text
from compress.formats.gguf.pre_tokenizers import BYTES, DIGITS, GPT2, NAMES
from compress.text.tokenize import load_tokenizer

RESULT = "gguf-tokenizers"
VOCABULARY = 1200
TEXTS: Mapping[str, list[str]] = json.loads(
    (Path(__file__).parent / "awkward_text.json").read_text(encoding="utf-8")
)
"""What kind of text → texts. None holds a special token."""


def by_regex(steps: tuple[str, ...]) -> Any:
    """A pre-tokenizer from the steps that ``compress.formats.gguf.pre_tokenizers`` names."""
    made = {
        GPT2: lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
        BYTES: lambda: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        DIGITS: lambda: pre_tokenizers.Digits(individual_digits=True),
        "digits-together": lambda: pre_tokenizers.Digits(individual_digits=False),
        "punctuation": lambda: pre_tokenizers.Punctuation("contiguous"),
    }
    parts = [
        made[step]() if step in made else pre_tokenizers.Split(Regex(step), "isolated") for step in steps
    ]
    return parts[0] if len(parts) == 1 else pre_tokenizers.Sequence(parts)


def byte_level(steps: tuple[str, ...], *, ignore_merges: bool = False) -> Tokenizer:
    """An untrained byte-level BPE tokenizer."""
    inner = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    inner.pre_tokenizer = by_regex(steps)
    inner.decoder = decoders.ByteLevel()
    return inner


def byte_fallback(*, prefix: bool, metaspace: bool) -> Tokenizer:
    """An untrained BPE tokenizer with byte fallback; the space before a text comes from either of two places."""
    inner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if metaspace:
        scheme = "first" if prefix else "never"
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    else:
        replaced = normalizers.Replace(" ", "▁")
        inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replaced]) if prefix else replaced
    return inner


def unigram(pre_tokenizer: Any, charsmap: bytes = b"") -> Tokenizer:
    """An untrained Unigram tokenizer, with SentencePiece's compiled normalization if one is given."""
    inner = Tokenizer(models.Unigram())
    inner.pre_tokenizer = pre_tokenizer
    if charsmap:
        inner.normalizer = normalizers.Precompiled(charsmap)
    return inner


KINDS: Mapping[str, Callable[[], Tokenizer]] = {
    **{name: partial(byte_level, steps, ignore_merges=name == "llama-bpe") for steps, name in NAMES.items()},
    "dbrx": lambda: byte_level(next(steps for steps, name in NAMES.items() if name == "llama-bpe")),
    "byte fallback, space in the normalizer": lambda: byte_fallback(prefix=True, metaspace=False),
    "byte fallback, no space": lambda: byte_fallback(prefix=False, metaspace=False),
    "byte fallback, metaspace": lambda: byte_fallback(prefix=True, metaspace=True),
    "byte fallback, metaspace without a space": lambda: byte_fallback(prefix=False, metaspace=True),
    "Unigram": lambda: unigram(pre_tokenizers.Metaspace(prepend_scheme="never")),
    "Unigram, metaspace": lambda: unigram(pre_tokenizers.Metaspace(prepend_scheme="always")),
}  # fmt: skip
LEARNED_ON: Mapping[str, tuple[str, ...]] = {
    "falcon": (BYTES, "digits-together"),
    "deepseek-llm": (DIGITS, BYTES),
}
"""Pre-tokenizer → the steps that its vocabulary is learned with, where others would give tokens that are refused."""


def trained(inner: Tokenizer, learned_on: tuple[str, ...] = (BYTES,)) -> PreTrainedTokenizerFast:
    """The tokenizer with a small vocabulary, learned on the shipped text and on what :data:`TEXTS` holds.

    Learned without splits: merges that cross the places where the pre-tokenizer splits show when another one splits elsewhere.
    With byte fallback it learns from the shipped text alone, so that the characters of :data:`TEXTS` fall back.
    """
    if isinstance(inner.model, models.Unigram):
        return trained_unigram(inner)
    pieces = bool(getattr(inner.model, "byte_fallback", False))
    special = (
        ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))] if pieces else ["<s>", "</s>"]
    )
    alphabet = [] if pieces else pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
        limit_alphabet=400,
        max_token_length=12,
    )
    text = Path(embedded_text("heldout")).read_text(encoding="utf-8")[:60_000].split("\n\n")
    awkward = [one for texts in TEXTS.values() for one in texts for _ in range(3)]
    splits = inner.pre_tokenizer
    if not pieces:
        inner.pre_tokenizer = by_regex(learned_on)
    inner.train_from_iterator(text if pieces else [*text, *awkward], trainer)
    inner.pre_tokenizer = splits
    if pieces:
        inner = _plain_bytes(inner)
    names = {"bos_token": "<s>", "eos_token": "</s>"} | ({"unk_token": "<unk>"} if pieces else {})
    return PreTrainedTokenizerFast(tokenizer_object=inner, **names)


def trained_unigram(inner: Tokenizer) -> PreTrainedTokenizerFast:
    """A Unigram tokenizer with a small vocabulary, learned on the shipped text."""
    trainer = trainers.UnigramTrainer(
        vocab_size=VOCABULARY, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False
    )
    text = Path(embedded_text("heldout")).read_text(encoding="utf-8")[:60_000].split("\n\n")
    inner.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def _plain_bytes(inner: Tokenizer) -> Tokenizer:
    """The tokens of single bytes are pieces like others: only ``<unk>``, ``<s>`` and ``</s>`` are special."""
    data = json.loads(inner.to_str())
    data["added_tokens"] = data["added_tokens"][:3]
    return Tokenizer.from_str(json.dumps(data))


def model_around(tokenizer: Any, folder: Path) -> Path:
    """A tiny random model with ``tokenizer``, as a GGUF file's folder."""
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=512,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "dense")
    tokenizer.save_pretrained(folder / "dense")
    export(folder / "dense", folder / "gguf", overwrite=True)
    return folder / "gguf"


def differences(tokenizer: Any, llamacpp: Path, folder: Path) -> dict[str, list[str]]:
    """The texts whose token ids differ, by their kind."""
    made = model_around(tokenizer, folder)
    flat = [(kind, text) for kind, texts in TEXTS.items() for text in texts]
    (folder / "texts.json").write_text(json.dumps([text for _, text in flat]), encoding="utf-8")
    run_llamacpp(llamacpp, "tokenize", made / "model.gguf", folder / "texts.json", folder / "out.json")
    theirs = json.loads((folder / "out.json").read_text(encoding="utf-8"))
    found: dict[str, list[str]] = {}
    for (kind, text), ids in zip(flat, theirs, strict=True):
        if tokenizer(text, add_special_tokens=False)["input_ids"] != ids:
            found.setdefault(kind, []).append(text)
    return found


def main() -> None:
    """Compare, record, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llama.cpp", dest="llamacpp", type=Path, required=True, metavar="PYTHON")
    parser.add_argument("--tokenizer", nargs="*", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS))
    options = parser.parse_args()
    logging.set_verbosity_error()
    tokenizers: dict[str, Any] = {
        name: trained(KINDS[name](), LEARNED_ON.get(name, (BYTES,))) for name in options.kinds
    }
    tokenizers["the embedded model's"] = load_tokenizer(embedded_model())
    for named in options.tokenizer:
        name, _, path = named.partition("=")
        tokenizers[name] = load_tokenizer(path)
    rows = []
    for name, tokenizer in tokenizers.items():
        with tempfile.TemporaryDirectory() as folder:
            found = differences(tokenizer, options.llamacpp, Path(folder))
        rows.append({"tokenizer": name, "texts": sum(map(len, TEXTS.values())), "different": found})
        print(name, found or "all alike", flush=True)
    write_results(RESULT, {"rows": rows})
    print(tokenizer_table(rows))


def tokenizer_table(rows: list[dict[str, Any]]) -> str:
    """How many texts have the same tokens, and of what kind the others are."""
    cells = []
    for row in rows:
        differing = sum(map(len, row["different"].values()))
        cells.append(
            (row["tokenizer"], f"{row['texts'] - differing} of {row['texts']}", ", ".join(row["different"]))
        )
    return table(("tokenizer", "texts with the same ids", "others"), cells)


if __name__ == "__main__":
    main()
