"""How a byte-level BPE tokenizer splits text before its merges, and what llama.cpp calls that."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.errors import UserError

_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SUFFIXES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+"
_CASED_UPPER = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_SLASH_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_DEEPSEEK_CJK = "[一-龥぀-ゟ゠-ヿ]+"
_DEEPSEEK_REST = (
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*"
    "|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
)

BYTES = "bytes"
"""The step that turns bytes into letters, without splitting."""
GPT2 = "gpt2"
"""The same step with GPT-2's expression."""
DIGITS = "digits"
"""Every digit by itself."""

NAMES: Mapping[tuple[str, ...], str] = {
    (GPT2,): "gpt-2",
    (DIGITS, GPT2): "smollm",
    (f"{_SUFFIXES}|{_LETTERS}|\\p{{N}}{{1,3}}|{_TAIL}", BYTES): "llama-bpe",
    (f"{_SUFFIXES}|{_LETTERS}|\\p{{N}}|{_TAIL}", BYTES): "qwen2",
    (f"{_CASED}{_SUFFIXES}?|{_CASED_UPPER}{_SUFFIXES}?|\\p{{N}}{{1,3}}|{_SLASH_TAIL}", BYTES): "gpt-4o",
    (f"{_CASED}|{_CASED_UPPER}|\\p{{N}}|{_SLASH_TAIL}", BYTES): "tekken",
    ("\\p{N}{1,3}", _DEEPSEEK_CJK, _DEEPSEEK_REST, BYTES): "deepseek-v3",
    ("punctuation", GPT2, "digits-together", "[0-9][0-9][0-9]"): "falcon",
}
"""The steps of a pre-tokenizer, as :func:`steps_of` names them → llama.cpp's name."""


def pre_tokenizer_name(data: Mapping[str, Any], path: Path) -> str:
    """llama.cpp's name for the pre-tokenizer of a ``tokenizer.json``.

    Raises:
        UserError: it splits text in a way for which llama.cpp has no name.
    """
    node = data.get("pre_tokenizer")
    steps = steps_of(node)
    if steps not in NAMES:
        shown = json.dumps(node, ensure_ascii=False)
        raise UserError(
            f"{path}: llama.cpp has no pre-tokenizer that splits text as this one does, and GGUF cannot express it: "
            f"{shown if len(shown) <= 200 else shown[:197] + '…'}"
        )
    name = NAMES[steps]
    # llama.cpp's llama-bpe takes a whole word that is a token before it looks at merges.
    if name == "llama-bpe" and not (data.get("model") or {}).get("ignore_merges"):
        return "dbrx"
    return name


def steps_of(node: Any) -> tuple[str, ...]:
    """The steps of a pre-tokenizer: regular expressions as they are written, all else by a word."""
    if not isinstance(node, Mapping):
        return ("none",)
    kind = node.get("type")
    if kind == "Sequence":
        return tuple(step for each in node["pretokenizers"] for step in steps_of(each))
    if kind == "ByteLevel":
        return (GPT2 if node.get("use_regex", True) else BYTES,)
    if kind == "Digits":
        return (DIGITS if node.get("individual_digits") else "digits-together",)
    if kind == "Split" and not node.get("invert") and "Regex" in (node.get("pattern") or {}):
        return (node["pattern"]["Regex"],)
    return (str(kind).lower(),)
