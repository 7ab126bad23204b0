"""A checkpoint's contents in one hash: headers and a few bytes of every tensor, since to read all takes as long as a run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from compress.checkpoint.headers import TensorInfo, read_header

PIECE = 256
"""Bytes of a sample."""

PIECES = 4
"""Samples of a tensor: its beginning, its end, and places in between that its name decides."""

_BLIND = 4096
"""Samples of a file of another format, whose tensors are not known here."""


def content_fingerprint(files: Sequence[Path]) -> str:
    """Hash the headers of safetensors files and samples of every tensor in them; of other files, samples in equal distances.

    A tensor of up to ``PIECE * PIECES`` bytes counts as a whole. A file with other weights of the same names, shapes and
    dtypes has another fingerprint, whatever its size and time say.

    Returns:
        SHA-256, in hexadecimal.

    Raises:
        UserError: a file is not a well-formed safetensors file.
    """
    digest = hashlib.sha256()
    for path in sorted(files, key=lambda path: path.name):
        digest.update(f"{path.name}\n".encode())
        with path.open("rb") as file:
            for start, size in _of_tensors(path, digest) if path.suffix == ".safetensors" else _evenly(path):
                digest.update(os.pread(file.fileno(), size, start))
    return digest.hexdigest()


def _of_tensors(path: Path, digest: Any) -> Iterator[tuple[int, int]]:
    for name, info in read_header(path).items():
        digest.update(f"{name} {info.dtype} {info.shape} {info.offset}\n".encode("utf-8", "replace"))
        yield from ((info.offset + start, size) for start, size in _pieces(name, info))


def _evenly(path: Path) -> Iterator[tuple[int, int]]:
    size = path.stat().st_size
    stride = max(PIECE, size // _BLIND)
    yield from ((start, PIECE) for start in range(0, size, stride))
    yield max(0, size - PIECE), PIECE


def _pieces(name: str, info: TensorInfo) -> Iterator[tuple[int, int]]:
    """Offsets within a tensor, and bytes to read there."""
    if info.nbytes <= PIECE * PIECES:
        yield 0, info.nbytes
        return
    yield 0, PIECE
    yield info.nbytes - PIECE, PIECE
    for number in range(PIECES - 2):
        seed = hashlib.sha256(f"{number} {name}".encode("utf-8", "replace")).digest()
        yield int.from_bytes(seed[:8], "little") % (info.nbytes - PIECE), PIECE
