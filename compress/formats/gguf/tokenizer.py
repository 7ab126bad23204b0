"""A tokenizer as GGUF's metadata: tokens with their types, merges or scores, special tokens, the chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.checkpoint.gguf import Value
from compress.errors import UserError

from .pre_tokenizers import pre_tokenizer_name
from .tokenizer_checks import (
    adds_space,
    charsmap,
    check_byte_level,
    check_pieces,
    check_unigram,
    merges_spaces,
)

_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_SPECIAL = {
    "bos": "bos",
    "eos": "eos",
    "unk": "unknown",
    "pad": "padding",
    "sep": "separator",
    "mask": "mask",
}
"""The role in tokenizer_config.json → its name in GGUF."""
_P = "tokenizer.ggml."

BYTE_LEVEL, PIECES, UNIGRAM = "gpt2", "llama", "t5"
"""llama.cpp's names for byte-level BPE, BPE with byte fallback, and Unigram."""
_CHECKS = {BYTE_LEVEL: check_byte_level, PIECES: check_pieces, UNIGRAM: check_unigram}


def tokenizer_metadata(folder: Path, config: Mapping[str, Any]) -> dict[str, Value]:
    """What GGUF says of the tokenizer in ``folder``; ``config`` is the model's.

    Raises:
        UserError: there is no ``tokenizer.json``, or llama.cpp has nothing that splits text as it does.
    """
    data, path = _tokenizer(folder)
    model, settings = data["model"], {}
    if (folder / "tokenizer_config.json").is_file():
        settings = _json(folder / "tokenizer_config.json")
    kind = _kind(data, path)
    tokens, types = _tokens(data, model, int(config.get("vocab_size") or 0), kind)
    found = {
        f"{_P}model": Value("string", kind),
        f"{_P}pre": Value("string", pre_tokenizer_name(data, path) if kind == BYTE_LEVEL else "default"),
        f"{_P}tokens": Value("string", tokens, array=True),
        f"{_P}token_type": Value("i32", types, array=True),
    }
    _CHECKS[kind](data, path)
    if kind == BYTE_LEVEL:
        found[f"{_P}merges"] = Value("string", [_merge(merge) for merge in model["merges"]], array=True)
    else:
        scores = _scores(model, tokens) if kind == PIECES else _log_probabilities(model, tokens)
        found[f"{_P}scores"] = Value("f32", scores, array=True)
        found[f"{_P}add_space_prefix"] = Value("bool", adds_space(data))
    if kind == UNIGRAM:
        found[f"{_P}remove_extra_whitespaces"] = Value("bool", merges_spaces(data))
        if compiled := charsmap(data):
            found[f"{_P}precompiled_charsmap"] = Value("u8", compiled, array=True)
    return found | _special_tokens(data, settings, config, tokens) | _chat_template(folder, settings)


def tokenizer_notes(folder: Path) -> tuple[str, ...]:
    """Sentences on the texts that llama.cpp tokenizes otherwise than the tokenizer in ``folder``; empty where there are none.

    Raises:
        UserError: as :func:`tokenizer_metadata`.
    """
    data, path = _tokenizer(folder)
    return _CHECKS[_kind(data, path)](data, path)


def _tokenizer(folder: Path) -> tuple[dict[str, Any], Path]:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UserError(
            f"{folder} has no tokenizer.json, from which a GGUF file takes its tokens: save the tokenizer with transformers "
            "(AutoTokenizer.from_pretrained(…).save_pretrained(…))"
        )
    return _json(path), path


def _kind(data: Mapping[str, Any], path: Path) -> str:
    """llama.cpp's name for the kind of tokenizer."""
    model = data.get("model") or {}
    kind, vocabulary = model.get("type", "BPE"), model.get("vocab")
    if kind == "Unigram" and isinstance(vocabulary, list):
        return UNIGRAM
    if kind != "BPE" or not isinstance(vocabulary, dict):
        raise UserError(f"{path}: GGUF cannot express a tokenizer of type {kind}; BPE and Unigram it can")
    return PIECES if model.get("byte_fallback") else BYTE_LEVEL


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path} must hold a JSON object")
    return data


def _tokens(
    data: Mapping[str, Any], model: Mapping[str, Any], size: int, kind: str
) -> tuple[list[str], list[int]]:
    """Every token by its number, and its type; numbers that stand for nothing are filled up to ``size``."""
    if kind == UNIGRAM:
        numbered = [(number, token) for number, (token, _) in enumerate(model["vocab"])]
        unknown = numbered[model["unk_id"]][1] if isinstance(model.get("unk_id"), int) else None
    else:
        numbered = [(number, token) for token, number in model["vocab"].items()]
        unknown = model.get("unk_token")
    by_id = {number: (token, _type(token, unknown, kind)) for number, token in numbered}
    for added in data.get("added_tokens") or ():
        special = _UNKNOWN if added["content"] == unknown else _CONTROL
        by_id[added["id"]] = (added["content"], special if added.get("special") else _USER)
    if size and max(by_id) >= size:
        raise UserError(
            f"the tokenizer has a token number {max(by_id)}, but the model's vocabulary has {size} entries: llama.cpp takes "
            "one embedding for each token"
        )
    count = max(size, max(by_id) + 1)
    entries = [by_id.get(number, (f"[PAD{number}]", _UNUSED)) for number in range(count)]
    return [token for token, _ in entries], [kind for _, kind in entries]


def _type(token: str, unknown: str | None, kind: str) -> int:
    if kind == PIECES and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return _BYTE
    return _UNKNOWN if token == unknown else _NORMAL


def _merge(merge: Any) -> str:
    return merge if isinstance(merge, str) else " ".join(merge)


def _scores(model: Mapping[str, Any], tokens: list[str]) -> list[float]:
    """SentencePiece's scores: llama.cpp joins the pair of the highest score first, which is the earliest merge."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(model["merges"]):
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        ranks.setdefault(left + right, rank)
    return [-float(ranks.get(token, 0)) for token in tokens]


def _log_probabilities(model: Mapping[str, Any], tokens: list[str]) -> list[float]:
    """The scores of a Unigram tokenizer, whose numbers are the places in its list."""
    scores = [float(score) for _, score in model["vocab"]]
    return [*scores, *([0.0] * (len(tokens) - len(scores)))]


def _special_tokens(
    data: Mapping[str, Any], settings: Mapping[str, Any], config: Mapping[str, Any], tokens: list[str]
) -> dict[str, Value]:
    numbers = {token: number for number, token in enumerate(tokens)}
    found = {}
    for role, name in _SPECIAL.items():
        given = settings.get(f"{role}_token")
        text = given.get("content") if isinstance(given, Mapping) else given
        number: Any = numbers.get(text) if isinstance(text, str) else None
        if number is None:
            listed = config.get(f"{role}_token_id")
            number = listed[0] if isinstance(listed, list) and listed else listed
        if isinstance(number, int) and 0 <= number < len(tokens):
            found[f"{_P}{name}_token_id"] = Value("u32", number)
    for role in ("bos", "eos"):
        if (key := f"{_P}{_SPECIAL[role]}_token_id") in found:
            added = _added(data, tokens[found[key].value], first=role == "bos")
            found[f"{_P}add_{role}_token"] = Value("bool", added)
    return found


def _added(data: Mapping[str, Any], token: str, *, first: bool) -> bool:
    """Whether the tokenizer puts ``token`` before (or behind) a text by itself."""
    processor = data.get("post_processor") or {}
    for step in processor.get("processors") or [processor]:
        template = step.get("single") or [] if step.get("type") == "TemplateProcessing" else []
        if template:
            end = template[0 if first else -1].get("SpecialToken")
            if end is not None and end.get("id") == token:
                return True
    return False


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> dict[str, Value]:
    path = folder / "chat_template.jinja"
    template = path.read_text(encoding="utf-8") if path.is_file() else settings.get("chat_template")
    if isinstance(template, list):
        named = {each["name"]: each["template"] for each in template}
        template = named.get("default")
    return {"tokenizer.chat_template": Value("string", template)} if isinstance(template, str) else {}
