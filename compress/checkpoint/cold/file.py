"""One safetensors file, entropy-coded.

The packed file: 16 bytes of mark, 8 bytes (little endian) with the length n of the header, n bytes of JSON, then the data.
The JSON has the SHA-256 of the safetensors file, the length of its own header (the first thing in the data, as it is), and for
each tensor in the order of the file its bytes, how they are split, and for each stream the histogram and the bytes of its
chunks. A stream that coding does not make smaller is kept as it is.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from compress.checkpoint.cold.coder import decode, encode
from compress.checkpoint.cold.symbols import Bytes, Split, Symbols, choose_split, entropy_of, histogram
from compress.checkpoint.headers import TensorInfo, read_header
from compress.errors import UserError

MARK = b"compress cold 1\n"
CHUNK = 1 << 22
"""Symbols that are coded together."""


@dataclass(frozen=True)
class FileSize:
    """Bytes of a file before and after, and the entropy bound: what its streams hold, headers and histograms not counted."""

    before: int
    after: int
    bound: float


def pack_file(source: Path, target: Path) -> FileSize:
    """Pack one safetensors file."""
    infos = sorted(read_header(source).items(), key=lambda item: item[1].offset)
    start = min((info.offset for _, info in infos), default=source.stat().st_size)
    entries, parts, bound = [], [], 0.0
    raw = np.memmap(source, dtype=np.uint8, mode="r") if source.stat().st_size else np.zeros(0, np.uint8)
    at = start
    for name, info in infos:
        if info.offset != at:
            raise UserError(f"{source} has a hole before {name}: write the checkpoint anew, then pack it.")
        entry, data, bits = _pack_tensor(np.asarray(raw[at : at + info.nbytes]), info)
        entries.append({"name": name, **entry})
        parts += data
        bound += bits / 8
        at += info.nbytes
    head = {"sha256": _digest(source), "head": start, "tensors": entries}
    text = json.dumps(head, separators=(",", ":")).encode()
    with target.open("xb") as file:
        file.write(MARK + struct.pack("<Q", len(text)) + text + raw[:start].tobytes())
        for part in parts:
            file.write(part)
    return FileSize(source.stat().st_size, target.stat().st_size, bound)


def _pack_tensor(data: Bytes, info: TensorInfo) -> tuple[dict[str, Any], list[bytes], float]:
    """A tensor's entry, its data, and the bits that it holds."""
    codes = not (info.dtype.is_floating_point or info.dtype.is_complex)
    split = choose_split(data, info.dtype.itemsize, info.shape, whole_numbers=codes)
    streams, parts, bits = [], [], 0.0
    for symbols in split.streams(data):
        counts = histogram(symbols)
        bits += len(symbols) * entropy_of(counts)
        chunks = [encode(part, counts) for part in _chunks(symbols)]
        coded = {
            "counts": counts.tolist(),
            "chunks": [len(chunk) for chunk in chunks],
            "symbols": len(symbols),
        }
        if sum(map(len, chunks)) + 4 * len(counts) < len(symbols) * split.bits / 8 * 0.98:
            streams.append(coded)
            parts += chunks
        else:
            streams.append({"symbols": len(symbols)})
            parts.append(_plain(symbols, split))
    entry = {
        "nbytes": len(data),
        "bits": split.bits,
        "planes": split.planes,
        "row": split.row,
        "streams": streams,
    }
    return entry, parts, bits


def _plain(symbols: Symbols, split: Split) -> bytes:
    """A stream as it is: the bytes of a plane, or packed codes."""
    if split.planes > 1:
        return symbols.astype(np.uint8).tobytes()
    return split.join([symbols], 0).tobytes()


def _chunks(symbols: Symbols) -> Iterator[Symbols]:
    for first in range(0, max(len(symbols), 1), CHUNK):
        yield symbols[first : first + CHUNK]


def unpack_file(source: Path, target: Path) -> None:
    """Write the safetensors file that a packed file holds.

    Raises:
        UserError: it is no packed file, or what comes out is not what went in.
    """
    digest = hashlib.sha256()
    try:
        with source.open("rb") as file, target.open("xb") as out:
            head = _head(file, source)
            for piece in _pieces(file, head):
                digest.update(piece)
                out.write(piece)
        matches = digest.hexdigest() == head["sha256"]
    except (ValueError, KeyError, TypeError, IndexError, struct.error) as error:
        raise UserError(f"{source} is damaged ({error}): pack the checkpoint again.") from error
    if not matches:
        raise UserError(f"{source} is damaged (another SHA-256 comes out): pack the checkpoint again.")


def _head(file: BinaryIO, source: Path) -> dict[str, Any]:
    if file.read(len(MARK)) != MARK:
        raise UserError(f"{source} is no file that `compress pack` wrote.")
    (length,) = struct.unpack("<Q", file.read(8))
    return dict(json.loads(_read(file, length)))


def _pieces(file: BinaryIO, head: dict[str, Any]) -> Iterator[bytes]:
    """The header of the safetensors file and its tensors, in their order."""
    yield _read(file, head["head"])
    for entry in head["tensors"]:
        split = Split(entry["bits"], entry["planes"], entry["row"])
        if split.bits < 1 or split.planes < 1 or split.row < 1:
            raise ValueError("a tensor is split into nothing")
        streams = [_stream(file, one, split, entry["nbytes"]) for one in entry["streams"]]
        joined = split.join(streams, entry["nbytes"])
        if len(joined) != entry["nbytes"]:
            raise ValueError(f"{entry['name']} has {len(joined)} bytes in place of {entry['nbytes']}")
        yield joined.tobytes()


def _stream(file: BinaryIO, one: dict[str, Any], split: Split, nbytes: int) -> Symbols:
    count = one["symbols"]
    if "chunks" not in one:
        data = np.frombuffer(_read(file, nbytes if split.planes == 1 else count), dtype=np.uint8)
        return next(iter(split.streams(data))) if split.planes == 1 else data.astype(np.int32)
    counts = np.asarray(one["counts"], dtype=np.int64)
    sizes = [min(CHUNK, count - first) for first in range(0, max(count, 1), CHUNK)]
    parts = [decode(_read(file, size), counts, each) for size, each in zip(one["chunks"], sizes, strict=True)]
    return np.concatenate(parts)


def _read(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise ValueError("it ends early")
    return data


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
