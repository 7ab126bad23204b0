"""A text file as consecutive windows of tokens."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from compress.assets import EMBEDDED, PROSE, embedded_text
from compress.errors import UserError
from compress.text.documents import open_documents
from compress.text.frame import framed, special_tokens_around
from compress.text.records import Document
from compress.text.tokenize import PIECE_CHARACTERS, encode, join_tokens

CHARACTERS_PER_TOKEN = 8
"""First guess at how much text a limited number of windows needs; more is taken until they are full."""

ADDED = 8
"""Special tokens around a window and positions without a token, at most."""
MARGIN = 64
"""Tokens beyond those that are needed: where a piece of a text is cut, its last words may be split in another way."""


def text_files(text: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files of texts: "embedded" is the shipped held-out text, "prose" shipped English prose.

    Raises:
        UserError: there is none, or one is named twice.
    """
    several = [text] if isinstance(text, str | Path) else list(text)
    if not several:
        raise UserError("There is no text to evaluate on: name one.")
    shipped = {EMBEDDED: "heldout", PROSE: "prose"}
    files = [Path(embedded_text(shipped[str(one)]) if str(one) in shipped else one) for one in several]  # type: ignore[arg-type]
    for index, file in enumerate(files):
        if file in files[:index]:
            named = str(several[index])
            shown = named if len(named) <= 80 and "\n" not in named else repr(named[:60]) + " …"
            raise UserError(f"The text {shown} is named twice: name each once.")
    return files


@dataclass(frozen=True)
class Cut:
    """How texts are cut into windows: of ``length`` tokens, at most ``limit`` of them, with BOS or between special tokens."""

    tokenizer: PreTrainedTokenizerBase
    length: int
    limit: int | None
    bos: bool
    framing: bool = False

    def windows(self, documents: Sequence[Document], limit: int | None = None) -> Tensor:
        """Windows of a text, int64 `[windows, length]`; with `framing` each stands between the tokenizer's special tokens."""
        most = self.limit if limit is None else limit
        if not self.framing:
            return text_windows(documents, self.tokenizer, length=self.length, limit=most, bos=self.bos)
        before, behind = special_tokens_around(self.tokenizer)
        inner = self.length - len(before) - len(behind)
        return framed(text_windows(documents, self.tokenizer, length=inner, limit=most), before, behind)


def read_documents(path: str | Path) -> list[Document]:
    """Read the documents of a text, ``.jsonl`` or ``.json`` file (:mod:`compress.text.documents`).

    Raises:
        UserError: the file is missing, empty, not UTF-8, or holds JSON of no known form.
    """
    path = Path(path).expanduser()
    documents = open_documents(path).all()
    if not documents:
        raise UserError(f"The text {path} is empty: give a text file with something to read.")
    return documents


def text_windows(
    text: str | Sequence[Document],
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    limit: int | None = None,
    bos: bool = False,
) -> Tensor:
    """Cut the first `limit` consecutive windows from a text; all whole ones for None.

    Args:
        text: the text itself, or documents, which are joined with the tokenizer's end-of-sequence token.
        tokenizer: the model's.
        length: tokens per window, at least 2.
        limit: number of windows.
        bos: begin every window with the tokenizer's BOS token (counted in `length`), as models that never saw
            a text without one need. Otherwise the text is cut as it comes.

    Returns:
        int64 `[windows, length]`.

    Raises:
        UserError: the text is shorter than one window, or `bos` is asked of a tokenizer without one.
    """
    if length < 2:
        raise UserError(f"A window of {length} token predicts nothing: take a length of 2 or more.")
    if limit is not None and limit < 1:
        raise UserError(f"A limit of {limit} windows leaves nothing to measure: take 1 or more.")
    if bos and tokenizer.bos_token_id is None:
        raise UserError("This tokenizer has no BOS token: evaluate without one.")
    payload = length - 1 if bos else length
    ids = _token_ids(text, tokenizer, None if limit is None else limit * payload, bos=bos)
    windows = len(ids) // payload
    if windows == 0:
        raise _too_short(len(ids), length)
    cut = torch.frombuffer(ids, dtype=torch.int64)[: windows * payload].reshape(windows, payload).clone()
    if bos:
        cut = torch.cat([torch.full((windows, 1), tokenizer.bos_token_id, dtype=torch.int64), cut], dim=1)
    return cut


def check_long_enough(
    text: str | Sequence[Document], tokenizer: PreTrainedTokenizerBase, length: int, config: Mapping[str, Any]
) -> None:
    """Raise for a text that is shorter than one window, before any model is loaded.

    Args:
        text: as :func:`text_windows` takes it.
        tokenizer: of the model.
        length: tokens of a window.
        config: the model's ``config.json``; its positions shorten a window.

    Raises:
        UserError: it is shorter, by more than the special tokens and the positions that a model may add by itself.
    """
    longest = (config.get("text_config") or config).get("max_position_embeddings")
    length = min(length, longest) if isinstance(longest, int) and longest > 0 else length
    found = len(_token_ids(text, tokenizer, length, bos=False))
    if found < length - ADDED:
        raise _too_short(found, length)


def _token_ids(
    text: str | Sequence[Document], tokenizer: PreTrainedTokenizerBase, need: int | None, *, bos: bool
) -> array[int]:
    """The tokens of a text, or as many of the first as are needed, and a few more."""
    return join_tokens(
        [text] if isinstance(text, str) else text,
        tokenizer,
        "to evaluate on",
        limit=need,
        bos=bos,
        piece_characters=None
        if need is None
        else max(PIECE_CHARACTERS, CHARACTERS_PER_TOKEN * (need + MARGIN)),
    )


def _too_short(found: int, length: int) -> UserError:
    return UserError(
        f"The text has {found} tokens, fewer than one window of {length}: take a longer text or a shorter length."
    )


def check_same_tokenizer(
    reference: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, name: str, probe: str
) -> None:
    """Raise UserError unless `other` has all tokens of the reference, at the same ids, and splits `probe` alike.

    It may have more: transformers adds special tokens to a tokenizer that it makes from the metadata of a GGUF file.
    """
    if not reference.get_vocab().items() <= other.get_vocab().items():
        what = f"{len(other)} tokens against {len(reference)}"
    elif encode(reference, probe) != encode(other, probe):
        what = "it splits the text otherwise"
    else:
        return
    raise UserError(
        f"{name} has another tokenizer than the reference ({what}), so their predictions cannot be compared: "
        "evaluate it against its own dense model."
    )
