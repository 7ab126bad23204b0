"""Whether llama.cpp tokenizes as a ``tokenizer.json`` does: what it cannot do is refused, rare differences are said."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from compress.errors import UserError

SPACE = "▁"
"""SentencePiece's letter for a space."""
LEADING_SPACE = (
    "llama.cpp puts a space before every text, as SentencePiece does; transformers puts none before a text that begins with a "
    "space, so that such a text begins with other tokens there."
)
COMPOSED = (
    "llama.cpp does not normalize text to {form}, as this tokenizer does: letters that are written with combining marks get "
    "other tokens there."
)

COMPILED = (
    "llama.cpp normalizes text letter by letter as SentencePiece does, transformers by letters with their marks: stacked "
    "combining marks, line ends of Windows and rare separators of lines get other tokens there."
)


def refusal(path: Path, what: str, node: Any) -> UserError:
    """The sentence on a part of a tokenizer that llama.cpp does not have."""
    shown = json.dumps(node, ensure_ascii=False)
    return UserError(
        f"{path}: llama.cpp {what}, and GGUF cannot express it: {shown if len(shown) <= 200 else shown[:197] + '…'}"
    )


def parts(node: Any) -> list[Mapping[str, Any]]:
    """A normalizer or pre-tokenizer as the list of its steps."""
    if not isinstance(node, Mapping):
        return []
    inner = node.get("normalizers") or node.get("pretokenizers")
    return [step for each in inner for step in parts(each)] if inner else [node]


def adds_space(data: Mapping[str, Any]) -> bool:
    """Whether a space is put before the text."""
    if any(part.get("type") == "Prepend" for part in parts(data.get("normalizer"))):
        return True
    return any(
        part.get("type") == "Metaspace"
        and part.get("prepend_scheme", "always") != "never"
        and part.get("add_prefix_space", True)
        for part in parts(data.get("pre_tokenizer"))
    )


def check_byte_level(data: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """Check what goes with the pre-tokenizer of a byte-level BPE tokenizer; sentences on what differs in rare texts.

    Raises:
        UserError: a normalizer or a setting of its merges that llama.cpp does not have.
    """
    _check_bpe(data["model"], path)
    notes = []
    for step in parts(data.get("normalizer")):
        if step.get("type") not in ("NFC", "NFKC"):
            raise refusal(path, "does not normalize the text of byte-level tokenizers", step)
        notes.append(COMPOSED.format(form=step["type"]))
    return tuple(notes)


def check_pieces(data: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """Check a BPE tokenizer with byte fallback (SentencePiece); sentences on what differs in rare texts.

    Raises:
        UserError: it treats text otherwise than by turning spaces into :data:`SPACE`, with or without one in front.
    """
    _check_bpe(data["model"], path)
    escaped = False
    for step in parts(data.get("normalizer")):
        kind = step.get("type")
        if kind == "Replace" and step.get("pattern") == {"String": " "} and step.get("content") == SPACE:
            escaped = True
        elif not (kind == "Prepend" and step.get("prepend") == SPACE):
            raise refusal(path, "does not normalize text as this tokenizer does", step)
    notes: tuple[str, ...] = ()
    for step in parts(data.get("pre_tokenizer")):
        if step.get("type") == "Metaspace":
            notes += _check_metaspace(step, data["model"]["vocab"], path)
            escaped = True
        elif not (escaped and step.get("type") == "Split" and step.get("pattern") == {"String": " "}):
            raise refusal(
                path, "does not split text as this tokenizer does", step
            )  # without spaces nothing is split there
    if not escaped:
        raise refusal(
            path, f"turns spaces into {SPACE}, which this tokenizer does not", data.get("normalizer")
        )
    return notes


def check_unigram(data: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """Check a Unigram tokenizer; sentences on what differs in rare texts.

    Raises:
        UserError: it falls back to bytes, or treats text otherwise than llama.cpp can.
    """
    model = data["model"]
    if model.get("byte_fallback"):
        raise refusal(
            path,
            "has no Unigram tokenizer that falls back to bytes",
            {"type": "Unigram", "byte_fallback": True},
        )
    if model.get("unk_id") is None:
        raise refusal(path, "needs a token for unknown letters in a Unigram tokenizer", {"unk_id": None})
    normalizers = parts(data.get("normalizer"))
    for step in normalizers:
        if step.get("type") != "Precompiled" or len(normalizers) > 1:
            raise refusal(path, "does not normalize text as this tokenizer does", data.get("normalizer"))
    steps = parts(data.get("pre_tokenizer"))
    kinds = [step.get("type") for step in steps]
    notes = (COMPILED,) if normalizers else ()
    if kinds == ["WhitespaceSplit", "Metaspace"] and adds_space(data) and _makes_spaces(charsmap(data)):
        _check_metaspace(steps[1], _tokens(model), path)
        return notes
    if kinds != ["Metaspace"]:
        raise refusal(path, "does not split text as this tokenizer does", data.get("pre_tokenizer"))
    if not steps[0].get("split", True) and any(len(t) > 1 and not t.strip(SPACE) for t in _tokens(model)):
        raise refusal(path, "may cut a run of spaces into other tokens of the same score", steps[0])
    return (*notes, *_check_metaspace(steps[0], _tokens(model), path))


def _makes_spaces(compiled: bytes) -> bool:
    """Whether a compiled normalization turns tabs and line ends into spaces, of which llama.cpp then drops all but one."""
    return all(compiled_letter(compiled, ord(letter)) == b" " for letter in "\t\n\r")


def compiled_letter(compiled: bytes, letter: int) -> bytes | None:
    """What SentencePiece's compiled normalization makes of one ASCII letter; ``None`` where it leaves it or is damaged.

    It is the length of a double array, the array of uint32 (Darts-clone), and strings that end with a zero byte.
    """
    try:
        (size,) = struct.unpack_from("<I", compiled)
        units = struct.unpack_from(f"<{size // 4}I", compiled, 4)
        node = _offset(units[0]) ^ letter
        if units[node] & 0x800000FF != letter or not units[node] >> 8 & 1:
            return None
        place = units[node ^ _offset(units[node])] & 0x7FFFFFFF
    except (struct.error, IndexError):
        return None
    return compiled[4 + size + place :].split(b"\0", 1)[0]


def _offset(unit: int) -> int:
    return (unit >> 10) << ((unit & 1 << 9) >> 6)


def merges_spaces(data: Mapping[str, Any]) -> bool:
    """Whether a Unigram tokenizer drops spaces at both ends and all but one of a run of them."""
    return any(step.get("type") == "WhitespaceSplit" for step in parts(data.get("pre_tokenizer")))


def charsmap(data: Mapping[str, Any]) -> bytes:
    """The normalization of a Unigram tokenizer as SentencePiece compiles it; empty if it has none."""
    for step in parts(data.get("normalizer")):
        if step.get("type") == "Precompiled":
            return base64.b64decode(step["precompiled_charsmap"] or "")
    return b""


def mixes_digits(token: str) -> bool:
    """Whether a token holds digits and other letters. Of a vocabulary without such tokens no merge leads over a place between
    digits and letters, and splitting there changes nothing."""
    return 0 < sum(letter.isnumeric() for letter in token) < len(token)


def joins_digits(token: str) -> bool:
    """Whether a byte-level token holds digits beside each other."""
    text = bytes(_BYTE_OF[letter] for letter in token if letter in _BYTE_OF).decode("utf-8", "replace")
    return any(first.isnumeric() and second.isnumeric() for first, second in pairwise(text))


def _byte_letters() -> dict[str, int]:
    """The letters that byte-level tokenizers write bytes as: printable ones as they are, all others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = _byte_letters()


def _tokens(model: Mapping[str, Any]) -> list[str]:
    return [token for token, _ in model["vocab"]]


def _check_bpe(model: Mapping[str, Any], path: Path) -> None:
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise refusal(path, f"has no '{key}' in its merges", {key: model[key]})


def _check_metaspace(step: Mapping[str, Any], tokens: Iterable[str], path: Path) -> tuple[str, ...]:
    if step.get("replacement", SPACE) != SPACE:
        raise refusal(path, f"turns spaces into {SPACE} alone", step)
    if step.get("split", True) and (
        crossing := next((t for t in tokens if SPACE in t[1:] and t.strip(SPACE)), None)
    ):
        raise refusal(
            path,
            f"would find the token {crossing!r}, which lies across two words that this tokenizer splits",
            step,
        )
    runs = step.get("split", True) and any(len(token) > 1 and not token.strip(SPACE) for token in tokens)
    if runs:
        raise refusal(path, "would join spaces that this tokenizer splits", step)
    return (
        (LEADING_SPACE,)
        if step.get("prepend_scheme", "always") != "never" and step.get("add_prefix_space", True)
        else ()
    )
