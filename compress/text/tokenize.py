"""Tokens of documents: in pieces, through the chat template, with BOS by the tokenizer's own habit."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from compress.errors import UserError
from compress.text.records import Document, Messages, TokenIds

PIECE_CHARACTERS = 1 << 17
"""Characters that are tokenized at once: a tokenizer takes some two hundred bytes of memory for each."""

_NEW_LINE = re.compile(r"\n(?=\S)")


def load_tokenizer(path: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint.

    Raises:
        UserError: there is none that loads.
    """
    try:
        return AutoTokenizer.from_pretrained(str(path), trust_remote_code=trust_remote_code)
    except (KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:  # the Rust library panics with an exception outside of Exception
        raise UserError(
            f"{path} has no tokenizer that loads ({_first_line(error)}): copy the model's tokenizer files there."
        ) from error


def encode(tokenizer: PreTrainedTokenizerBase, text: str, *, special_tokens: bool = True) -> list[int]:
    """Split a text of any length into token ids, with the special tokens that the tokenizer adds by itself, or without.

    Raises:
        UserError: the tokenizer's files do not go together: it fails on the text.
    """
    try:
        # verbose=False: a text longer than the model's context is no mistake here, it is cut into windows.
        found = tokenizer(text, add_special_tokens=special_tokens, verbose=False)["input_ids"]
        return [int(token) for token in found]
    except (KeyboardInterrupt, MemoryError):
        raise
    except (
        BaseException
    ) as error:  # a bare Exception of the Rust library, or whatever the author's code raises
        raise UserError(
            f"The tokenizer of {tokenizer.name_or_path or 'this model'} cannot split a text ({_first_line(error)}): copy the "
            "model's own tokenizer files there."
        ) from error


def _first_line(error: BaseException) -> str:
    return (next(iter(str(error).strip().splitlines()), "") or type(error).__name__)[:200]


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts a BOS token before a text by itself."""
    if tokenizer.bos_token_id is None:
        return False
    ids = encode(tokenizer, "a")
    return bool(ids) and ids[0] == tokenizer.bos_token_id


def resolve_bos(bos: bool | None, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether windows begin with BOS: as asked, or by the tokenizer's own habit for None.

    Raises:
        UserError: BOS was asked of a tokenizer that has none.
    """
    if bos is None:
        return adds_bos(tokenizer)
    if bos and tokenizer.bos_token_id is None:
        raise UserError("This tokenizer has no BOS token: leave --bos out.")
    return bos


def join_tokens(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    *,
    limit: int | None = None,
    bos: bool = False,
    piece_characters: int | None = PIECE_CHARACTERS,
) -> array[int]:
    """Tokens of documents, joined with the end-of-sequence token where there is one.

    No special tokens are added inside a document.

    Args:
        documents: texts, conversations or token ids.
        tokenizer: the model's.
        source: what the text is called in error sentences.
        limit: reading stops once there are so many tokens; None reads all.
        bos: the windows will begin with BOS, so that a document's leading one (from a chat template, say) is left out.
        piece_characters: longer documents are tokenized in pieces of so many characters, which end where a line does; None
            takes each as a whole.

    Returns:
        The ids, int64.

    Raises:
        UserError: a conversation that the chat template refuses, or no tokens at all.
    """
    eos = tokenizer.eos_token_id
    drop = tokenizer.bos_token_id if bos else None
    ids = array("q")
    for document in documents:
        if ids and eos is not None:
            ids.append(eos)
        begin = len(ids)
        for piece in _encode(document, tokenizer, source, piece_characters):
            ids.extend(piece)
            if limit is not None and len(ids) > limit:
                break
        if len(ids) > begin and ids[begin] == drop:
            del ids[begin]
        if limit is not None and len(ids) >= limit:
            return ids[:limit]
    if not ids:
        raise UserError(f"The text {source} is empty; name one with at least one window of words.")
    return ids


def _encode(
    document: Document, tokenizer: PreTrainedTokenizerBase, source: str, piece: int | None
) -> Iterator[list[int]]:
    """Yield the tokens of a document, piece by piece."""
    if isinstance(document, TokenIds):
        yield list(document.ids)
        return
    text = document if isinstance(document, str) else _from_template(document, tokenizer, source)
    start = 0
    while start < len(text):
        stop = len(text) if piece is None else min(start + piece, len(text))
        if stop < len(text):
            # A line that begins at the margin: tokens hardly ever reach across such a place.
            line = max((match.end() for match in _NEW_LINE.finditer(text, start, stop)), default=stop)
            stop = line if line > start else stop
        yield encode(tokenizer, text[start:stop], special_tokens=False)
        start = stop


def _from_template(document: Messages, tokenizer: PreTrainedTokenizerBase, source: str) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f'{source} holds "messages", but the tokenizer has no chat template; use lines with a "text".'
        )
    messages: list[Any] = [dict(message) for message in document.messages]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False))
    except Exception as error:  # a template is a program of the checkpoint's author: it may raise anything
        raise UserError(f'The chat template refuses "messages" of {source}: {str(error)[:200]}') from error
