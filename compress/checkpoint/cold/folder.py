"""A checkpoint's folder in cold storage, and back."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from compress.checkpoint.cold.coder import library
from compress.checkpoint.cold.file import FileSize, pack_file, unpack_file
from compress.errors import UserError

_LOG = logging.getLogger(__name__)
_SUFFIX = ".cold"


@dataclass(frozen=True)
class Packed:
    """What was packed.

    Attributes:
        out: the folder.
        before, after: bytes of the weight files.
        bound: the entropy of all streams, bytes: what no coder of single symbols can go below.
    """

    out: Path
    before: int
    after: int
    bound: float

    @property
    def above_bound(self) -> float:
        """How far the packed bytes lie above the bound, headers and histograms included; 0.01 is 1%."""
        return self.after / self.bound - 1 if self.bound else 0.0


def pack(folder: str | Path, out: str | Path) -> Packed:
    """Pack a checkpoint: its safetensors files entropy-coded, all others copied.

    Raises:
        UserError: there is no such folder, no checkpoint in it or nothing to pack, ``out`` exists, or constriction is missing.
    """
    library()
    folder, out = Path(folder), Path(out)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json: give the folder of a checkpoint.")
    sizes: list[FileSize] = []

    def one(source: Path, target: Path) -> None:
        _LOG.info("packing %s", source.name)
        sizes.append(pack_file(source, target.with_name(target.name + _SUFFIX)))

    _each_file(folder, out, ".safetensors", one)
    return Packed(
        out,
        sum(size.before for size in sizes),
        sum(size.after for size in sizes),
        sum(size.bound for size in sizes),
    )


def unpack(folder: str | Path, out: str | Path) -> Path:
    """Unpack what :func:`pack` made; every file is held against the hash of the one that was packed.

    Raises:
        UserError: there is no such folder or nothing packed in it, ``out`` exists, a file is damaged, or constriction is not
            installed.
    """
    library()

    def one(source: Path, target: Path) -> None:
        _LOG.info("unpacking %s", source.name)
        unpack_file(source, target.with_name(target.name.removesuffix(_SUFFIX)))

    _each_file(Path(folder), Path(out), _SUFFIX, one)
    return Path(out)


def _each_file(folder: Path, out: Path, suffix: str, action: Callable[[Path, Path], None]) -> None:
    """Do something with each file that ends in ``suffix`` and copy the rest; the folder appears when it is whole."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: give the folder of a checkpoint.")
    if out.exists() or out.is_symlink():
        raise UserError(f"{out} already exists: choose another folder.")
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    if not any(path.name.endswith(suffix) for path in files):
        raise UserError(f"{folder} has no {suffix} file: there is nothing to do.")
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        for path in files:
            target = unfinished / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.name.endswith(suffix):
                action(path, target)
            else:
                shutil.copy2(path, target)
        unfinished.replace(out)
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({error.strerror or error}): choose another folder."
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
