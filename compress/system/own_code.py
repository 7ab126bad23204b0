"""The code of Compress itself, as one hash: two machines of one version may have been installed from other sources."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

_PACKAGES = ("compress", "compress_kernels")
_SUFFIXES = (".py", ".cpp", ".h")


def own_code() -> str:
    """The first half of a SHA-256 of the packages' source files and their names."""
    digest = hashlib.sha256()
    for package in _PACKAGES:
        spec = find_spec(package)
        folders = [] if spec is None else [Path(place) for place in spec.submodule_search_locations or ()]
        for folder in folders:
            digest.update(_contents(folder))
    return digest.hexdigest()[:32]


def _contents(folder: Path) -> bytes:
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in _SUFFIXES):
        digest.update(f"{path.relative_to(folder)}\n".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.digest()
