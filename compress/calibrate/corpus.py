"""Calibration and evaluation text as windows of tokens, the same ones for the same seed."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.assets import EMBEDDED, embedded_text
from compress.calibrate.documents import Documents, open_documents
from compress.errors import UserError

PIECE_CHARACTERS = 1 << 17
_NEW_LINE = re.compile(r"\n(?=\S)")

MUCH_LARGER = 4
"""Of a file so many times larger than all stretches together only the stretches are tokenised, which the seed chooses."""

BYTES_PER_TOKEN = 4


@dataclass(frozen=True)
class Corpus:
    """Windows of text.

    Attributes:
        tokens: int64 `[samples, length]`.
        source: the text they come from, as it was named.
        tokens_available: how many tokens the windows were drawn from.
        note: what a person should know about the draw, in one sentence; empty when there is nothing.
    """

    tokens: Tensor
    source: str
    tokens_available: int
    note: str = ""


def load_tokens(data: str, tokenizer: Any, *, samples: int, length: int, seed: int) -> Tensor:
    """Return `load_corpus(...).tokens`, int64 `[samples, length]`."""
    return load_corpus(data, tokenizer, samples=samples, length=length, seed=seed).tokens


def load_corpus(data: str, tokenizer: Any, *, samples: int, length: int, seed: int) -> Corpus:
    """Draw `samples` windows of `length` tokens at random places of a text.

    Args:
        data: a text file, a `.jsonl` file whose lines have a "text" or "messages", a hub dataset
            ("name", "name:config", "name:config:split:column"), or "embedded".
        tokenizer: a Hugging Face tokenizer; no special tokens are added inside the windows, documents
            of a jsonl file or a dataset are joined with its end-of-sequence token.
        samples: how many windows.
        length: tokens in a window.
        seed: decides the places.

    Returns:
        The windows; the same arguments give the same windows.

    Raises:
        UserError: there is no such text, it is empty, malformed or shorter than one window, or there is no
            tokenizer.
    """
    if samples < 1 or length < 1:
        raise UserError(f"Calibration needs at least one window of one token, not {samples} of {length}.")
    _require(tokenizer)
    generator = torch.Generator().manual_seed(seed)
    path = _local_file(data)
    if path is not None and path.stat().st_size > MUCH_LARGER * samples * _stretch_bytes(length):
        return _draw_from_stretches(open_documents(path), data, tokenizer, samples, length, generator)
    if path is not None:
        ids = _join(open_documents(path).all(), tokenizer, data)
    else:
        ids = _dataset_tokens(data, tokenizer, wanted=4 * samples * length, generator=generator)
    return _draw(ids, data, samples, length, generator)


def _local_file(data: str) -> Path | None:
    """Return the file that `data` names, or None where it must be a dataset's name."""
    if data == EMBEDDED:
        return embedded_text("calibration")
    path = Path(data).expanduser()
    if path.is_dir():
        raise UserError(f"The text {data} is a folder; name a .txt or .jsonl file in it.")
    if path.is_file():
        return path
    if path.suffix in {".txt", ".jsonl", ".json", ".md"} or data.startswith(("/", "./", "../", "~")):
        raise UserError(f"There is no text file {data}; check the path.")
    return None


def _require(tokenizer: Any) -> None:
    if tokenizer is None:
        raise UserError(
            "The model comes without a tokenizer, so text cannot be turned into tokens; "
            "put its tokenizer.json beside the weights."
        )


def _encode(text: str, tokenizer: Any) -> Iterator[list[int]]:
    """Tokens of a text, piece by piece: a tokenizer takes some two hundred bytes of memory for each of a text."""
    start = 0
    while start < len(text):
        stop = min(start + PIECE_CHARACTERS, len(text))
        if stop < len(text):
            # A line that begins at the margin: tokens hardly ever reach across such a place.
            line = max((match.end() for match in _NEW_LINE.finditer(text, start, stop)), default=stop)
            stop = line if line > start else stop
        # verbose=False: a text longer than the model's context is no mistake here, it is cut into windows.
        yield tokenizer(text[start:stop], add_special_tokens=False, verbose=False)["input_ids"]
        start = stop


def _join(documents: Sequence[Any], tokenizer: Any, source: str) -> Tensor:
    """Tokens of all documents, joined with the end-of-sequence token where there is one."""
    eos = tokenizer.eos_token_id
    ids = array("q")
    for number, document in enumerate(documents):
        if number and eos is not None:
            ids.append(eos)
        for piece in _encode(_as_text(document, tokenizer, source), tokenizer):
            ids.extend(piece)
    if not ids:
        raise UserError(f"The text {source} is empty; name one with at least one window of words.")
    return torch.frombuffer(ids, dtype=torch.int64)


def _as_text(document: Any, tokenizer: Any, source: str) -> str:
    if isinstance(document, str):
        return document
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f'{source} holds "messages", but the tokenizer has no chat template; use lines with a "text".'
        )
    try:
        return tokenizer.apply_chat_template(document, tokenize=False)
    except Exception as error:
        raise UserError(f'The chat template refuses "messages" of {source}: {error}') from error


def _long_enough(ids: Tensor, source: str, length: int) -> None:
    if ids.numel() < length:
        raise UserError(
            f"The text {source} has {ids.numel()} tokens, fewer than one sequence of {length}; "
            "give a longer text or a smaller --length."
        )


def _draw(ids: Tensor, source: str, samples: int, length: int, generator: torch.Generator) -> Corpus:
    _long_enough(ids, source, length)
    starts = ids.numel() - length + 1
    offsets = torch.randint(starts, (samples,), generator=generator)
    return Corpus(
        tokens=ids.unfold(0, length, 1)[offsets].clone(),
        source=source,
        tokens_available=ids.numel(),
        note=_note(ids.numel(), source, samples, length),
    )


def _note(available: int, source: str, samples: int, length: int) -> str:
    if available >= samples * length:
        return ""
    return (
        f"{source} has {available} tokens for {samples} windows of {length}, so the windows overlap; "
        "a longer text would calibrate better."
    )


def _stretch_bytes(length: int) -> int:
    """Bytes that are read for a window: room for some choice of where it begins, whatever the tokens' lengths."""
    return max(4 * BYTES_PER_TOKEN * length, 1 << 12)


def _draw_from_stretches(
    documents: Documents, source: str, tokenizer: Any, samples: int, length: int, generator: torch.Generator
) -> Corpus:
    """One window from each of `samples` stretches that the seed chooses, so that a huge file is not read."""
    rows: list[Tensor] = []
    available = 0
    size = _stretch_bytes(length)
    for _ in range(samples):
        start = int(torch.randint(max(documents.nbytes - size, 1), (1,), generator=generator))
        ids = _join(documents.stretch(start, size), tokenizer, source)
        if ids.numel() < length:  # more bytes to a token than any known tokenizer: read on from there
            ids = _join(documents.stretch(start, 16 * size), tokenizer, source)
        _long_enough(ids, source, length)
        offset = int(torch.randint(ids.numel() - length + 1, (1,), generator=generator))
        rows.append(ids[offset : offset + length])
        available += ids.numel()
    return Corpus(torch.stack(rows), source, available, _note(available, source, samples, length))


def _dataset_tokens(data: str, tokenizer: Any, wanted: int, generator: torch.Generator) -> Tensor:
    """Tokens of a hub dataset's rows, in an order that the seed chooses, until there are `wanted`."""
    name, config, split, column = [*data.split(":"), "", "", ""][:4]
    rows = _open_dataset(name, config, split or "train", data)
    column = _column(rows.column_names, column, data)
    eos = tokenizer.eos_token_id
    ids: list[int] = []
    for row in torch.randperm(len(rows), generator=generator).tolist():
        if ids and eos is not None:
            ids.append(eos)
        document = rows[row][column]
        if document:
            for piece in _encode(_as_text(document, tokenizer, data), tokenizer):
                ids.extend(piece)
        if len(ids) >= wanted:
            break
    if not ids:
        raise UserError(f"The dataset {data} has no text in its column {column}; name another column.")
    return torch.tensor(ids, dtype=torch.int64)


def _open_dataset(name: str, config: str, split: str, data: str) -> Any:
    try:
        import datasets  # noqa: PLC0415  an optional dependency
    except ImportError as error:
        raise UserError(
            f"{data} is no file here, and hub datasets need the package datasets: "
            "pip install 'compress-llm[hub]'."
        ) from error
    try:
        return datasets.load_dataset(name, config or None, split=split)
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise UserError(
            f"{data} is neither a file nor a dataset that can be loaded "
            f"({type(error).__name__}: {reason[0] if reason else 'no reason given'})."
        ) from error


def _column(names: Sequence[str], asked: str, data: str) -> str:
    if asked and asked not in names:
        raise UserError(f"The dataset {data} has no column {asked}; it has {', '.join(names)}.")
    for name in (asked, "text", "messages"):
        if name and name in names:
            return name
    raise UserError(
        f"The dataset {data} has no column text or messages; name one of {', '.join(names)} "
        "as name:config:split:column."
    )
