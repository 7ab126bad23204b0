"""Calibration and evaluation text as windows of tokens, the same ones for the same seed."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compress.calibrate.text_length import overlap_note, too_short, too_short_for_two
from compress.errors import UserError
from compress.text.check import local_text, require_datasets
from compress.text.documents import Documents, open_documents
from compress.text.records import COLUMNS, Document, documents_of
from compress.text.tokenize import join_tokens, resolve_bos

MUCH_LARGER = 4
"""Of a file so many times larger than all excerpts together only the excerpts are tokenized, which the seed chooses."""

BYTES_PER_TOKEN = 4


@dataclass(frozen=True)
class Corpus:
    """Windows of text.

    Attributes:
        tokens: int64 `[samples, length]`.
        source: the text they come from, as it was named.
        tokens_available: how many tokens the windows were drawn from.
        note: what a person should know about the draw, in a few sentences; empty when there is nothing.
        bos: whether every window begins with the BOS token.
        images: what the model is given for the images of each window, by name of its argument; None for text.
    """

    tokens: Tensor
    source: str
    tokens_available: int
    note: str = ""
    bos: bool = False
    images: tuple[Mapping[str, Tensor], ...] | None = None


@dataclass(frozen=True)
class _Draw:
    """How windows are drawn: `samples` of `length` tokens, BOS among them where `bos` is not None."""

    source: str
    tokenizer: Any
    samples: int
    length: int
    bos: int | None
    generator: torch.Generator

    @property
    def payload(self) -> int:
        """Tokens of text in a window."""
        return self.length if self.bos is None else self.length - 1

    def join(self, documents: Sequence[Any]) -> Tensor:
        """Tokens of all documents, int64."""
        return _tensor(join_tokens(documents, self.tokenizer, self.source, bos=self.bos is not None))

    def corpus(self, rows: Tensor, available: int) -> Corpus:
        """The corpus of windows without BOS, int64 `[samples, payload]`, drawn from `available` tokens."""
        if self.bos is not None:
            rows = torch.cat([torch.full((len(rows), 1), self.bos, dtype=torch.int64), rows], dim=1)
        note = overlap_note(self.source, available, self.samples, self.payload)
        return Corpus(rows, self.source, available, note, self.bos is not None)


def load_tokens(
    data: str, tokenizer: Any, *, samples: int, length: int, seed: int, bos: bool | None = None
) -> Tensor:
    """Return `load_corpus(...).tokens`, int64 `[samples, length]`."""
    return load_corpus(data, tokenizer, samples=samples, length=length, seed=seed, bos=bos).tokens


def load_corpus(
    data: str, tokenizer: Any, *, samples: int, length: int, seed: int, bos: bool | None = None
) -> Corpus:
    """Draw `samples` windows of `length` tokens at random places of a text.

    Args:
        data: a text file, a `.jsonl` or `.json` file of documents in any form that :mod:`compress.text.records` reads, a hub
            dataset ("name", "name:config", "name:config:split:column"), or "embedded".
        tokenizer: a Hugging Face tokenizer; no other special tokens are added inside the windows, documents
            of a jsonl file or a dataset are joined with its end-of-sequence token.
        samples: how many windows.
        length: tokens in a window, BOS included.
        seed: decides the places.
        bos: begin every window with the BOS token; None does as the tokenizer does by itself.

    Returns:
        The windows; the same arguments give the same windows.

    Raises:
        UserError: there is no such text, it is empty, malformed or shorter than one window, or there is no
            tokenizer.
    """
    if samples < 1 or length < 1:
        raise UserError(f"Calibration needs at least one window of one token, not {samples} of {length}.")
    _require(tokenizer)
    first = tokenizer.bos_token_id if length > 1 and resolve_bos(bos, tokenizer) else None
    draw = _Draw(data, tokenizer, samples, length, first, torch.Generator().manual_seed(seed))
    path = local_text(data)
    if path is None:
        return _draw_from(_dataset_tokens(draw, wanted=4 * samples * length), draw)
    documents = open_documents(path)
    if documents.form != "json" and documents.nbytes > MUCH_LARGER * samples * _excerpt_bytes(length):
        return _draw_from_excerpts(documents, draw)
    return _draw_from(draw.join(documents.all()), draw)


Places = Callable[[int, int, int, torch.Generator], Tensor]
FEW_HELD_OUT = 64
"""So many held-out windows may lie upon each other where a text is short."""
HELD_OUT_SHARE = 0.1
"""The share of a text, at its end, that windows apart from the training text are drawn from, where that is long enough."""


def load_apart(
    data: str,
    tokenizer: Any,
    *,
    samples: int,
    held_out: int,
    length: int,
    seed: int,
    places: Places,
    bos: bool | None = None,
) -> tuple[Corpus, Corpus]:
    """Draw windows to train on, and windows of the end of the same text that none of these reaches into.

    The end is a tenth of the text, or as much of half of it as ``held_out`` windows take. The held-out windows lie there in
    equal distances.

    Args:
        data, tokenizer, length, bos: as in :func:`load_corpus`.
        samples: windows to train on.
        held_out: windows at the end.
        seed: decides the places of the first.
        places: ``(tokens, length, count, generator)`` → where ``count`` windows of ``length`` tokens begin, int64 ``[count]``.

    Raises:
        UserError: as :func:`load_corpus`, the text is shorter than two windows, or its end too short for many different ones.
    """
    _require(tokenizer)
    first = tokenizer.bos_token_id if length > 1 and resolve_bos(bos, tokenizer) else None
    draw = _Draw(data, tokenizer, samples, length, first, torch.Generator().manual_seed(seed))
    path = local_text(data)
    if path is None:
        ids = _dataset_tokens(draw, wanted=4 * samples * length)
    else:
        ids = draw.join(open_documents(path).all())
    if ids.numel() < 2 * draw.payload:
        raise too_short_for_two(data, ids.numel(), length)
    wanted = min(held_out * draw.payload, ids.numel() // 2)
    tail = max(draw.payload, wanted, int(HELD_OUT_SHARE * ids.numel()))
    training, end = ids[:-tail], ids[-tail:]
    last = end.numel() - draw.payload
    if held_out > max(FEW_HELD_OUT, last + 1):
        raise UserError(
            f"The end of {data} has {last + 1:,} places for windows of {length} tokens, fewer than the {held_out:,} that are "
            "to be held out: ask for fewer, or give a longer text."
        )
    starts = [round(last * place / max(1, held_out - 1)) for place in range(held_out)]
    windows = torch.stack([end[start : start + draw.payload] for start in starts])
    offsets = places(training.numel(), draw.payload, samples, draw.generator)
    chosen = torch.stack([training[start : start + draw.payload] for start in offsets.tolist()])
    return draw.corpus(chosen, training.numel()), draw.corpus(windows, end.numel())


def _require(tokenizer: Any) -> None:
    if tokenizer is None:
        raise UserError(
            "The model comes without a tokenizer, so text cannot be turned into tokens; "
            "put its tokenizer.json beside the weights."
        )


def _tensor(ids: array[int]) -> Tensor:
    return torch.frombuffer(ids, dtype=torch.int64)


def _long_enough(ids: Tensor, draw: _Draw) -> None:
    if ids.numel() < draw.payload:
        raise too_short(draw.source, ids.numel(), draw.length)


def _draw_from(ids: Tensor, draw: _Draw) -> Corpus:
    _long_enough(ids, draw)
    starts = ids.numel() - draw.payload + 1
    offsets = torch.randint(starts, (draw.samples,), generator=draw.generator)
    return draw.corpus(ids.unfold(0, draw.payload, 1)[offsets].clone(), ids.numel())


def _excerpt_bytes(length: int) -> int:
    """Bytes that are read for a window: room for some choice of where it begins, whatever the tokens' lengths."""
    return max(4 * BYTES_PER_TOKEN * length, 1 << 12)


def _draw_from_excerpts(documents: Documents, draw: _Draw) -> Corpus:
    """One window from each of `samples` excerpts that the seed chooses, so that a huge file is not read."""
    rows: list[Tensor] = []
    available = 0
    size = _excerpt_bytes(draw.length)
    for _ in range(draw.samples):
        start = int(torch.randint(max(documents.nbytes - size, 1), (1,), generator=draw.generator))
        ids = draw.join(documents.excerpt(start, size))
        if ids.numel() < draw.payload:  # more bytes to a token than any known tokenizer: read on from there
            ids = draw.join(documents.excerpt(start, 16 * size))
        _long_enough(ids, draw)
        offset = int(torch.randint(ids.numel() - draw.payload + 1, (1,), generator=draw.generator))
        rows.append(ids[offset : offset + draw.payload])
        available += ids.numel()
    return draw.corpus(torch.stack(rows), available)


def _dataset_tokens(draw: _Draw, wanted: int) -> Tensor:
    """Tokens of a hub dataset's rows, in an order that the seed chooses, until there are `wanted`."""
    data = draw.source
    name, config, split, column = [*data.split(":"), "", "", ""][:4]
    rows = _open_dataset(name, config, split or "train", data)
    chosen = _column(rows.column_names, column, data)

    def documents() -> Iterator[Document]:
        for number in torch.randperm(len(rows), generator=draw.generator).tolist():
            row = rows[number]
            if row[chosen]:
                # A record as in a file, or the column that was named.
                value = row if not column else {column: row[column]} if column in COLUMNS else row[column]
                yield from documents_of(value, f"Row {number} of {data}")

    return _tensor(join_tokens(documents(), draw.tokenizer, data, limit=wanted, bos=draw.bos is not None))


def _open_dataset(name: str, config: str, split: str, data: str) -> Any:
    require_datasets(data)
    try:
        import datasets  # noqa: PLC0415  an optional dependency

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
    for name in (asked, *COLUMNS):
        if name and name in names:
            return name
    raise UserError(
        f"The dataset {data} has no column {', '.join(COLUMNS)}; name one of {', '.join(names)} "
        "as name:config:split:column."
    )
