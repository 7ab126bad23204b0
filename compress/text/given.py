"""Calibration data that is given in Python: strings, messages, token ids, data sets and loaders, as a file of documents."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from compress.errors import UserError

_WHAT = (
    "calibration data is a file, the name of a data set, or an iterable of strings, chat messages, token ids, records "
    "with 'text', 'messages' or 'input_ids', or batches of a DataLoader"
)

_KEYS = ("text", "messages", "input_ids")


def names_a_text(data: Any) -> bool:
    """Whether ``data`` is the name of a text and not the text's contents: a file, a data set of the hub, ``embedded``."""
    return isinstance(data, str | os.PathLike)


def write_documents(data: Any, folder: Path) -> Path:
    """Write data that is given in Python to a jsonl file that readers of calibration text take.

    Args:
        data: an iterable of documents, or of batches of them; one batch; or a ``pandas.DataFrame`` of records. A document is a
            string; a conversation (a list of messages with ``role`` and ``content``); token ids (a list of integers or an int64
            tensor ``[tokens]``); or a record with ``text``, ``messages`` or ``input_ids``, as rows of a ``datasets.Dataset``
            are. A batch is a record of tensors ``[batch, tokens]`` (padding is left out by its ``attention_mask``), a tensor of
            that shape, or a list of strings.
        folder: where to write.

    Returns:
        The file, named by a hash of its contents, so that the same data is known again.

    Raises:
        UserError: ``data`` is empty or of another form.
    """
    if isinstance(data, Mapping) and any(key in data for key in _KEYS):
        data = [data]
    elif hasattr(data, "iterrows"):  # a pandas.DataFrame, which iterates over the names of its columns
        data = data.to_dict("records")
    if not isinstance(data, Iterable) or isinstance(data, bytes | Mapping):
        hint = ": give one of its splits" if isinstance(data, Mapping) and "train" in data else ""
        raise UserError(f"{_WHAT}, not {type(data).__name__}{hint}")
    file, digest = folder / "data.jsonl", hashlib.sha256()
    count = 0
    with file.open("w", encoding="utf-8") as lines:
        for document in _documents(data):
            line = json.dumps(document, ensure_ascii=False) + "\n"
            digest.update(line.encode("utf-8", "surrogatepass"))
            lines.write(line)
            count += 1
    if not count:
        raise UserError("the calibration data is empty: give at least one document")
    return file.rename(folder / f"data-{digest.hexdigest()[:16]}.jsonl")


def _documents(data: Iterable[Any]) -> Iterator[Any]:
    if _is_tensor(data):
        yield from _of_tensor(data)
        return
    values = data if not isinstance(data, list | tuple) else [data] if _is_one(data) else data
    for number, value in enumerate(values):
        yield from _of_value(value, number)


def _is_one(values: Any) -> bool:
    """Whether a list is one document (token ids, a conversation) and not a list of documents."""
    return bool(values) and (all(_is_int(v) for v in values) or all(_is_message(v) for v in values))


def _of_value(value: Any, number: int) -> Iterator[Any]:
    if isinstance(value, str):
        yield value
    elif _is_tensor(value):
        yield from _of_tensor(value)
    elif isinstance(value, Mapping):
        yield from _of_record(value, number)
    elif isinstance(value, list | tuple) and value:
        if all(_is_int(item) for item in value):
            yield {"input_ids": [int(item) for item in value]}
        elif all(_is_message(item) for item in value):
            yield {"messages": [dict(item) for item in value]}
        else:  # a batch: a list of strings, or the tensors of a TensorDataset
            for item in value:
                yield from _of_value(item, number)
    else:
        raise UserError(f"element {number} of the calibration data is a {type(value).__name__}: {_WHAT}")


def _of_record(record: Mapping[str, Any], number: int) -> Iterator[Any]:
    ids = record.get("input_ids")
    if ids is not None:
        rows = ids.tolist() if _is_tensor(ids) else list(ids)
        mask = record.get("attention_mask")
        kept = None if mask is None else mask.tolist() if _is_tensor(mask) else list(mask)
        if rows and _is_int(rows[0]):
            rows, kept = [rows], None if kept is None else [kept]
        for index, row in enumerate(rows):
            shown = row if kept is None else [t for t, keep in zip(row, kept[index], strict=True) if keep]
            if shown:
                yield {"input_ids": [int(token) for token in shown]}
        return
    text = record.get("text")
    if isinstance(text, list | tuple):  # a batch of texts
        yield from ({"text": one} for one in text)
        return
    try:
        yield json.loads(json.dumps(dict(record)))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"element {number} of the calibration data is a record with values that are no JSON: {_WHAT}"
        ) from error


def _of_tensor(tensor: Any) -> Iterator[Any]:
    rows = tensor.tolist()
    if tensor.ndim not in (1, 2) or (
        rows and not _is_int(rows[0] if tensor.ndim == 1 else next(iter(rows[0]), 0))
    ):
        raise UserError(f"a tensor of calibration data holds token ids [tokens] or [batch, tokens]: {_WHAT}")
    for row in [rows] if tensor.ndim == 1 else rows:
        yield {"input_ids": row}


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "tolist") and hasattr(value, "ndim")


def _is_int(value: Any) -> bool:
    scalar = hasattr(value, "__index__") and not getattr(value, "ndim", 0)
    return scalar and not isinstance(value, bool)


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and "role" in value
