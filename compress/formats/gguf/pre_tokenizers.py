"""How a byte-level BPE tokenizer splits text before its merges, and what llama.cpp calls that."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .tokenizer_checks import joins_digits, mixes_digits, refusal

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

_DEEPSEEK_LETTERS = (
    "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛ"
    "ὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+"
)
_DEEPSEEK_WIDE = "[一-龥ࠀ-一가-퟿]+"

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
    ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_WIDE, DIGITS, BYTES): "deepseek-coder",
    (
        "[\r\n]",
        _DEEPSEEK_LETTERS,
        r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
        r"\s+$",
        _DEEPSEEK_WIDE,
        DIGITS,
        BYTES,
    ): "deepseek-llm",
    ("punctuation", GPT2, "digits-together", "[0-9][0-9][0-9]"): "falcon",
}
"""The steps of a pre-tokenizer, as :func:`steps_of` names them → llama.cpp's name."""


def _composed(steps: tuple[str, ...]) -> tuple[str, ...]:
    """Steps with their letters composed: programs that wrote a file anew may have done that to its expressions."""
    return tuple(unicodedata.normalize("NFC", step) for step in steps)


_BY_COMPOSED = {_composed(steps): name for steps, name in NAMES.items()}


def pre_tokenizer_name(data: Mapping[str, Any], path: Path) -> str:
    """llama.cpp's name for the pre-tokenizer of a ``tokenizer.json``.

    Raises:
        UserError: it splits text in a way for which llama.cpp has no name.
    """
    node = data.get("pre_tokenizer")
    steps = steps_of(node)
    name = _BY_COMPOSED.get(_composed(steps))
    if name is None:
        raise refusal(path, "has no pre-tokenizer that splits text as this one does", node)
    tokens = (data.get("model") or {}).get("vocab") or {}
    # llama.cpp leaves digits together with a space or a byte before them, or with each other.
    differs = {"falcon": mixes_digits, "deepseek-llm": joins_digits}.get(name)
    if differs is not None and (token := next(filter(differs, tokens), None)):
        raise refusal(path, f"would find the token {token!r}, across which this tokenizer splits", node)
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
        return (
            "prefix space"
            if node.get("add_prefix_space", True)
            else GPT2
            if node.get("use_regex", True)
            else BYTES,
        )
    if kind == "Digits":
        return (DIGITS if node.get("individual_digits") else "digits-together",)
    isolated = kind == "Split" and not node.get("invert") and node.get("behavior", "Isolated") == "Isolated"
    if isolated and "Regex" in (node.get("pattern") or {}):
        return (node["pattern"]["Regex"],)
    if kind == "Punctuation" and node.get("behavior", "Isolated") == "Contiguous":
        return ("punctuation",)
    if kind == "Punctuation":
        return ("punctuation by itself",)
    return (str(kind).lower(),)
