"""A tokenizer as GGUF's metadata: tokens with their types, merges or scores, special tokens, the chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.checkpoint.gguf import Value
from compress.errors import UserError

from .pre_tokenizers import pre_tokenizer_name

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


def tokenizer_metadata(folder: Path, config: Mapping[str, Any]) -> dict[str, Value]:
    """What GGUF says of the tokenizer in ``folder``; ``config`` is the model's.

    Raises:
        UserError: there is no ``tokenizer.json``, or llama.cpp has nothing that splits text as it does.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UserError(
            f"{folder} has no tokenizer.json, from which a GGUF file takes its tokens: save the tokenizer with transformers "
            "(AutoTokenizer.from_pretrained(…).save_pretrained(…))"
        )
    data = _json(path)
    model = data.get("model") or {}
    if model.get("type", "BPE") != "BPE" or not isinstance(model.get("vocab"), dict):
        raise UserError(f"{path}: GGUF cannot express a tokenizer of type {model.get('type')}; BPE it can")
    settings = _json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    pieces = bool(model.get("byte_fallback"))
    tokens, types = _tokens(data, model, int(config.get("vocab_size") or 0), pieces)
    found = {
        f"{_P}model": Value("string", "llama" if pieces else "gpt2"),
        f"{_P}pre": Value("string", "default" if pieces else pre_tokenizer_name(data, path)),
        f"{_P}tokens": Value("string", tokens, array=True),
        f"{_P}token_type": Value("i32", types, array=True),
    }
    if pieces:
        found[f"{_P}scores"] = Value("f32", _scores(model, tokens), array=True)
        found[f"{_P}add_space_prefix"] = Value("bool", _adds_space(data))
    else:
        found[f"{_P}merges"] = Value("string", [_merge(merge) for merge in model["merges"]], array=True)
    return found | _special_tokens(data, settings, config, tokens) | _chat_template(folder, settings)


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path} must hold a JSON object")
    return data


def _tokens(
    data: Mapping[str, Any], model: Mapping[str, Any], size: int, pieces: bool
) -> tuple[list[str], list[int]]:
    """Every token by its number, and its type; numbers that stand for nothing are filled up to ``size``."""
    by_id = {number: (token, _type(token, model, pieces)) for token, number in model["vocab"].items()}
    for added in data.get("added_tokens") or ():
        kind = _UNKNOWN if added["content"] == model.get("unk_token") else _CONTROL
        by_id[added["id"]] = (added["content"], kind if added.get("special") else _USER)
    if size and max(by_id) >= size:
        raise UserError(
            f"the tokenizer has a token number {max(by_id)}, but the model's vocabulary has {size} entries: llama.cpp takes "
            "one embedding for each token"
        )
    count = max(size, max(by_id) + 1)
    entries = [by_id.get(number, (f"[PAD{number}]", _UNUSED)) for number in range(count)]
    return [token for token, _ in entries], [kind for _, kind in entries]


def _type(token: str, model: Mapping[str, Any], pieces: bool) -> int:
    if pieces and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return _BYTE
    return _UNKNOWN if token == model.get("unk_token") else _NORMAL


def _merge(merge: Any) -> str:
    return merge if isinstance(merge, str) else " ".join(merge)


def _scores(model: Mapping[str, Any], tokens: list[str]) -> list[float]:
    """SentencePiece's scores: llama.cpp joins the pair of the highest score first, which is the earliest merge."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(model["merges"]):
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        ranks.setdefault(left + right, rank)
    return [-float(ranks.get(token, 0)) for token in tokens]


def _adds_space(data: Mapping[str, Any]) -> bool:
    """Whether a space is put before the text."""
    for part in _parts(data.get("normalizer")):
        if part.get("type") == "Prepend":
            return True
    return any(
        part.get("type") == "Metaspace"
        and (part.get("prepend_scheme", "always") != "never" and part.get("add_prefix_space", True))
        for part in _parts(data.get("pre_tokenizer"))
    )


def _parts(node: Any) -> list[Mapping[str, Any]]:
    """A normalizer or pre-tokenizer as the list of its steps."""
    if not isinstance(node, Mapping):
        return []
    inner = node.get("normalizers") or node.get("pretokenizers")
    return [step for each in inner for step in _parts(each)] if inner else [node]


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
