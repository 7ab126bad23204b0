"""Documents of a JSON value: plain text, chat messages or token ids, in the forms that data sets for language models have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from compress.errors import UserError

_MAX_NESTING = 3
"""Arrays in arrays that are followed: a file of conversations that are arrays of messages has two."""

_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "function": "tool"}
"""Speakers of ShareGPT → roles of chat templates; others stay as they are."""

_PLACE = "<image>"
"""Where LLaVA's data sets put an image into the words."""

_ALPACA = (
    "Below is an instruction that describes a task{context}. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n{input}### Response:\n{output}"
)
"""The prompt that Alpaca's authors published with the data set, followed by the response."""


@dataclass(frozen=True)
class Messages:
    """A conversation, in the form that chat templates take: mappings with at least "role"."""

    messages: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class TokenIds:
    """A document that is tokenized already."""

    ids: tuple[int, ...]


Document = str | Messages | TokenIds


def documents_of(value: Any, where: str) -> Iterator[Document]:
    """Yield the documents of a JSON value.

    A string is a text; an array of numbers is token ids; an array of messages is a conversation; any other array holds a
    document in each element. An object has one of: "text"; "input_ids"; "messages"; "conversations" (ShareGPT); "instruction"
    with "input" and "output" (Alpaca); "prompt" with "completion" or "response". Beside any of them "image" or "images" names
    files.

    Args:
        value: what ``json.loads`` gave.
        where: the place in the file, the beginning of error sentences.

    Raises:
        UserError: the value has none of these forms.
    """
    yield from _documents(value, where, _MAX_NESTING)


def _documents(value: Any, where: str, nesting: int) -> Iterator[Document]:
    if isinstance(value, str):
        yield _valid_text(value)
    elif isinstance(value, Mapping):
        yield _record(value, where)
    elif isinstance(value, list) and value and all(type(item) is int for item in value):
        yield _token_ids(value, where)
    elif isinstance(value, list) and value and all(_is_message(item) for item in value):
        yield _conversation(value, where)
    elif isinstance(value, list) and nesting:
        for index, item in enumerate(value):
            yield from _documents(item, f"{where}, element {index}", nesting - 1)
    else:
        raise _unknown(where)


def _record(record: Mapping[str, Any], where: str) -> Document:
    for key, read in _READERS.items():
        if record.get(key) is not None:
            return _with_images(read(record, where), record, where)
    raise _unknown(where)


def _with_images(document: Document, record: Mapping[str, Any], where: str) -> Document:
    """The document with the images that its record names beside it, before the first words of the user."""
    names = record.get("images", record.get("image"))
    if not names or isinstance(document, TokenIds):
        return document
    names = names if isinstance(names, list) else [names]
    if not all(isinstance(name, str) for name in names):
        raise UserError(f'{where}: "images" must be paths of files.')
    messages = (
        document.messages if isinstance(document, Messages) else ({"role": "user", "content": document},)
    )
    first = next((i for i, message in enumerate(messages) if message["role"] == "user"), 0)
    content = messages[first].get("content")
    words = (
        [{"type": "text", "text": content.replace(_PLACE, "").strip()}]
        if isinstance(content, str)
        else content
    )
    parts = [*({"type": "image", "image": name} for name in names), *(words or [])]
    # A template for images wants every content as a list of parts.
    return Messages(
        tuple(
            {**message, "content": parts if index == first else _parts(message.get("content"))}
            for index, message in enumerate(messages)
        )
    )


def _parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _text(record: Mapping[str, Any], where: str) -> str:
    return _string(record, "text", where)


def _input_ids(record: Mapping[str, Any], where: str) -> TokenIds:
    return _token_ids(record["input_ids"], where)


def _messages(record: Mapping[str, Any], where: str) -> Messages:
    return _conversation(record["messages"], where)


def _sharegpt(record: Mapping[str, Any], where: str) -> Messages:
    return _conversation(record["conversations"], where)


def _alpaca(record: Mapping[str, Any], where: str) -> str:
    given = _string(record, "input", where) if record.get("input") else ""
    return _ALPACA.format(
        context=", paired with an input that provides further context" if given else "",
        instruction=_string(record, "instruction", where),
        input=f"### Input:\n{given}\n\n" if given else "",
        output=_string(record, "output", where) if record.get("output") else "",
    )


def _prompt(record: Mapping[str, Any], where: str) -> Document:
    answer = next((key for key in ("completion", "response") if record.get(key) is not None), None)
    if isinstance(record["prompt"], list):
        replies = record[answer] if answer else []
        return _conversation([*record["prompt"], *(replies if isinstance(replies, list) else [])], where)
    return _string(record, "prompt", where) + (_string(record, answer, where) if answer else "")


_READERS: Mapping[str, Callable[[Mapping[str, Any], str], Document]] = {
    "text": _text,
    "input_ids": _input_ids,
    "messages": _messages,
    "conversations": _sharegpt,
    "instruction": _alpaca,
    "prompt": _prompt,
}


COLUMNS = tuple(_READERS)
"""The keys by which a record is recognised, and the columns of a data set, the first that is there."""


def _string(record: Mapping[str, Any], key: str, where: str) -> str:
    if not isinstance(record.get(key), str):
        raise UserError(f'{where}: "{key}" must be a string.')
    return _valid_text(record[key])


def _token_ids(ids: Any, where: str) -> TokenIds:
    if isinstance(ids, list) and len(ids) == 1 and isinstance(ids[0], list):
        ids = ids[0]  # a batch of one, as tokenizers return it
    if not isinstance(ids, list) or not all(type(item) is int and 0 <= item < 1 << 63 for item in ids):
        raise UserError(f"{where}: token ids must be an array of whole numbers, none below zero.")
    return TokenIds(tuple(ids))


def _is_message(item: Any) -> bool:
    return isinstance(item, Mapping) and isinstance(item.get("role", item.get("from")), str)


def _conversation(messages: Any, where: str) -> Messages:
    if not isinstance(messages, list) or not messages or not all(_is_message(item) for item in messages):
        raise UserError(
            f'{where}: a conversation must be an array of messages with "role" and "content", or "from" and "value".'
        )
    return Messages(tuple(_message(item) for item in messages))


def _message(item: Mapping[str, Any]) -> Mapping[str, Any]:
    """A message with "role" and "content", whatever its file calls them; other keys (tool calls) stay."""
    named = {key: value for key, value in item.items() if key not in ("from", "value")}
    role = item.get("role", item.get("from", ""))
    named["role"] = _ROLES.get(role, role) if "role" not in item else role
    content = item.get("content", item.get("value"))
    named["content"] = _valid_text(content) if isinstance(content, str) else content
    return named


def _valid_text(text: str) -> str:
    """The text with halves of surrogate pairs, which JSON can spell and UTF-8 cannot, replaced."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _unknown(where: str) -> UserError:
    return UserError(
        f'{where} has neither a "text" nor "messages", "conversations", "instruction", "prompt" or "input_ids".'
    )
