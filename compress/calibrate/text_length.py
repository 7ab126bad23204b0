"""Whether a text is long enough, asked before any expensive work: no more of it is tokenized than the answer takes."""

from __future__ import annotations

from typing import Any

from compress.errors import UserError
from compress.text.check import local_text
from compress.text.documents import Documents, open_documents
from compress.text.records import Document
from compress.text.tokenize import join_tokens, resolve_bos

BYTES_PER_TOKEN = 16
"""A first guess at the bytes that are read for a token, rather too many."""


def check_text_length(
    data: str, tokenizer: Any, *, length: int, windows: int = 1, bos: bool | None = None
) -> int | None:
    """Refuse a text that is shorter than one window.

    Args:
        data: as :func:`compress.calibrate.corpus.load_corpus` takes it.
        tokenizer: of the model.
        length: tokens in a window, BOS included.
        windows: no more tokens are counted than so many windows have.
        bos: as there.

    Returns:
        Tokens of the text, or as many as ``windows`` have where there are more; None for a dataset of the hub, which is not
        loaded here.

    Raises:
        UserError: it is shorter, or cannot be read.
    """
    path = local_text(data)
    if path is None:
        return None
    payload = payload_of(tokenizer, length, bos)
    found = _count(open_documents(path), tokenizer, data, payload * windows, bos=payload < length)
    if found < payload:
        raise too_short(data, found, length)
    return found


def check_two_windows(data: str, tokenizer: Any, *, length: int, bos: bool | None = None) -> None:
    """Refuse a text that is shorter than two windows: one to train on, one that is held out.

    Args:
        data, tokenizer, length, bos: as for :func:`check_text_length`.

    Raises:
        UserError: it is shorter, or cannot be read.
    """
    path = local_text(data)
    if path is None:
        return
    payload = payload_of(tokenizer, length, bos)
    found = _count(open_documents(path), tokenizer, data, 2 * payload, bos=payload < length)
    if found < 2 * payload:
        raise too_short_for_two(data, found, length)


def payload_of(tokenizer: Any, length: int, bos: bool | None) -> int:
    """Tokens of text in a window of ``length`` tokens, BOS among them."""
    return length - 1 if length > 1 and resolve_bos(bos, tokenizer) else length


def too_short(data: str, found: int, length: int) -> UserError:
    """The error of a text of ``found`` tokens for windows of ``length``."""
    return UserError(
        f"The text {data} has {found} tokens, fewer than one sequence of {length}; "
        "give a longer text or a smaller --length."
    )


def too_short_for_two(data: str, found: int, length: int) -> UserError:
    """The error of a text of ``found`` tokens for a window of ``length`` to train on and another to hold out."""
    return UserError(
        f"The text {data} has {found} tokens, fewer than two sequences of {length}, of which one is held out; give a "
        "longer text or a smaller length."
    )


def overlap_note(data: str, available: int, windows: int, payload: int) -> str:
    """A sentence where a text has fewer tokens than its windows together; else an empty one."""
    if available >= windows * payload:
        return ""
    return (
        f"{data} has {available} tokens for {windows} windows of {payload}, so the windows overlap; "
        "a longer text would calibrate better."
    )


def _count(documents: Documents, tokenizer: Any, data: str, need: int, *, bos: bool) -> int:
    """Tokens of a text, at most ``need``."""

    def count(some: list[Document]) -> int:
        return len(join_tokens(some, tokenizer, data, limit=need, bos=bos))

    beginning = BYTES_PER_TOKEN * need
    if documents.form != "json" and documents.nbytes > beginning:
        some = documents.excerpt(0, beginning)
        found = count(some) if some else 0
        if found >= need:
            return found
    return count(documents.all())
