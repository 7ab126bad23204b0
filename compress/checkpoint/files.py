"""Which files make up a checkpoint, and that none of them leads out of its folder."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from compress.assets import EMBEDDED, embedded_model
from compress.checkpoint.names import check_exists
from compress.errors import UserError

_LOG = logging.getLogger(__name__)

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
GGUF = "model.gguf"

_HOW_TO_CONVERT = (
    'python -c "from transformers import AutoModelForCausalLM as M; '
    "M.from_pretrained('{path}').save_pretrained('{path}-safetensors')\""
)
_HUB_PATTERNS = [
    "*.safetensors",
    "*.json",
    "*.jinja",
    "*.txt",
    "*.model",
    "*.py",
    "*.tiktoken",
    "LICENSE*",
    "*.md",
]


def resolve(name_or_path: str | Path, revision: str | None) -> tuple[Path, Path]:
    """The folder of a checkpoint, downloaded if it is a name on the hub; ``embedded`` is the model that ships here.

    Returns: the folder, and the folder that its files' real paths must lie in: itself, or for a snapshot in
    the hub's cache, whose files are links into `blobs`, the cached repository.
    Raises: `UserError` if there is no such folder or model.
    """
    if not isinstance(name_or_path, str | os.PathLike):
        raise UserError(f"a checkpoint is a folder or a name on the hub, not {type(name_or_path).__name__}")
    path = embedded_model() if str(name_or_path) == EMBEDDED else Path(name_or_path).expanduser()
    if str(name_or_path).strip() and os.path.isdir(path):
        return path, _real_root(path)
    if os.path.isfile(path):
        raise UserError(f"{path} is a file; give the folder of the checkpoint.")
    text = str(name_or_path)
    check_exists(text)
    path = _download(text, revision)
    return path, _real_root(path)


def _real_root(path: Path) -> Path:
    real = path.resolve()
    in_cache = real.parent.name == "snapshots" and real.parents[1].name.startswith("models--")
    return real.parents[1] if in_cache else real


def _download(name: str, revision: str | None) -> Path:
    _LOG.info("asking the hub or its local cache for %s", name)
    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=_HUB_PATTERNS,
                ignore_patterns=["consolidated*", "original/*"],
            )
        )
    except LocalEntryNotFoundError:
        raise UserError(
            f"{name!r} is no folder here, and neither the hub nor its local cache can give it."
        ) from None
    except (HFValidationError, HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{name!r} is no folder here and could not be downloaded from the hub: {reason}"
        ) from None


def inside(path: Path, name: str, real_root: Path, named_by: str) -> Path:
    """`path / name`, refused if it leads outside (absolute, `..`, or a link that leaves the folder) or is
    missing.

    `named_by` says in the error's sentence where the name comes from.
    """
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or Path(name).is_absolute():
        raise UserError(f"{named_by} names {name!r}, which leads outside {path}; refused.")
    file = path / name
    try:
        real = file.resolve(strict=file.is_symlink())
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a name with NUL or too long
        raise UserError(
            f"{named_by} names {name[:100]!r}, which cannot be opened in {path}: {getattr(error, 'strerror', None) or error}."
        ) from None
    if not real.is_relative_to(real_root):
        raise UserError(f"{file} is a link that leads outside its folder (to {real}); refused.")
    if not file.exists():
        raise UserError(f"{named_by} names {name!r}, which is missing in {path}; download or copy it again.")
    if not file.is_file():
        raise UserError(f"{named_by} names {name!r}, which is no regular file in {path}.")
    return file


def read_json(path: Path, name: str, real_root: Path) -> dict[str, Any]:
    """One JSON object from a file of the folder. Raises: `UserError`, also where it is missing or
    malformed."""
    if not _there(path / name):
        raise UserError(f"{path} holds no {name}; a checkpoint folder needs one.")
    file = inside(path, name, real_root, "the checkpoint")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        json.dumps(content, ensure_ascii=False).encode(
            "utf-8"
        )  # halves of surrogate pairs can be spelt, not written
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not valid JSON: {error}.") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} must hold a JSON object, not {type(content).__name__}.")
    return content


def weight_files(path: Path, real_root: Path) -> tuple[list[Path], dict[str, str] | None]:
    """The safetensors files of the model, and the index (tensor → file name) where there are several; or its GGUF file."""
    if _there(path / SINGLE):
        return [inside(path, SINGLE, real_root, "the checkpoint")], None
    if not _there(path / INDEX) and _there(path / GGUF):
        return [inside(path, GGUF, real_root, "the checkpoint")], None
    if not _there(path / INDEX):
        raise _no_weights(path)
    index = read_json(path, INDEX, real_root).get("weight_map")
    if (
        not isinstance(index, dict)
        or not all(isinstance(value, str) for value in index.values())
        or not index
    ):
        raise UserError(f"{path / INDEX} has no well-formed weight_map; download or copy it again.")
    return [inside(path, name, real_root, INDEX) for name in sorted(set(index.values()))], index


def _there(file: Path) -> bool:
    return file.is_symlink() or file.exists()


def _no_weights(path: Path) -> UserError:
    names = sorted(file.name for file in path.iterdir())
    if not names:
        return UserError(f"{path} is empty; give the folder of a checkpoint.")
    if any(name.endswith(".bin") for name in names):
        return UserError(
            f"{path} holds its weights only as .bin (pickle) files, which are never opened; convert them with: "
            + _HOW_TO_CONVERT.format(path=path)
        )
    return UserError(
        f"{path} holds neither {SINGLE} nor {INDEX}; only safetensors are read (weights in .bin files can be "
        f"converted with: {_HOW_TO_CONVERT.format(path=path)})."
    )


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
