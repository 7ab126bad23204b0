"""Uploads a finished checkpoint to the Hugging Face hub, file by file, so that an upload that was stopped goes on."""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented, not in __all__

from compress.checkpoint.integrity import check_hashes
from compress.checkpoint.writer import REPORT
from compress.errors import UserError
from compress.formats.dense_source import open_any

_LOG = logging.getLogger(__name__)
_WEIGHTS = {".safetensors", ".gguf"}


@dataclass(frozen=True)
class Pushed:
    """The result of an upload: the page of the repository, files that were sent, files that were there already."""

    url: str
    sent: int
    present: int


def push_to_hub(
    folder: str | Path,
    name: str,
    *,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
) -> Pushed:
    """Upload a finished checkpoint.

    The weight files go first, each with a commit of its own; what makes the repository a model (its configuration and card)
    goes last, in one commit. Files whose hash is that of the file on the hub are not sent.

    Args:
        folder: what ``compress`` wrote; its tensors are held against their hashes first.
        name: the repository, ``user/model``; made if there is none.
        private: make a new repository private.
        revision: the branch; ``main`` if ``None``.
        token: of the account; the one that ``hf auth login`` stored if ``None``.
        endpoint: the hub's address; ``HF_ENDPOINT`` or the public hub if ``None``.

    Raises:
        UserError: no name of a repository, nobody is logged in, the folder is not as it was written, or the hub refuses.
    """
    root = Path(folder)
    if not os.path.isdir(root):
        raise UserError(f"{root} is no folder: give one that `compress run` wrote")
    if not (root / REPORT).is_file():
        raise UserError(f"{root} has no {REPORT}: it is not a finished output of compress")
    check_upload(name, token)
    check_hashes(open_any(root))
    files = sorted(path for path in root.rglob("*") if path.is_file() and not _hidden(path.relative_to(root)))
    api = HfApi(endpoint=endpoint, token=token)
    try:
        url = api.create_repo(name, private=private, exist_ok=True)
        there = _hashes(api, url.repo_id, revision)
        missing = [
            path for path in files if there.get(path.relative_to(root).as_posix()) not in _hashes_of(path)
        ]
        weights = [path for path in missing if path.suffix in _WEIGHTS]
        for group in (*([path] for path in weights), [path for path in missing if path not in weights]):
            if group:
                _commit(api, url.repo_id, root, group, revision)
    except UserError:
        raise
    except (
        OSError,
        ValueError,
        RuntimeError,
    ) as error:  # what huggingface_hub raises: HTTP errors are OSErrors
        raise UserError(
            f"{name}: the upload stopped ({_reason(error)}): the same command goes on from there"
        ) from error
    return Pushed(str(url), len(missing), len(files) - len(missing))


def check_upload(name: str, token: str | None = None) -> None:
    """Refuse an upload that could not begin, before the work that it is to end: nothing is sent.

    Args:
        name: the repository, ``user/model``.
        token: of the account; the one that ``hf auth login`` stored if ``None``.

    Raises:
        UserError: no name of a repository, or nobody is logged in.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(
            f"{name!r} is no name of a repository ({_reason(error)}): write user/model"
        ) from error
    if token is None and get_token() is None:
        raise UserError(f"{name}: nobody is logged in to the hub: run `hf auth login` or set HF_TOKEN")


def _commit(api: HfApi, name: str, root: Path, group: list[Path], revision: str | None) -> None:
    names = [path.relative_to(root).as_posix() for path in group]
    said = names[0] if len(names) == 1 else f"{len(names)} files"
    _LOG.info("sending %s", said)
    operations = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=path)
        for name, path in zip(names, group, strict=True)
    ]
    api.create_commit(name, operations, commit_message=f"Upload {said}", revision=revision)


def _hashes(api: HfApi, name: str, revision: str | None) -> dict[str, str]:
    """File on the hub → the SHA-256 of its bytes if it is stored as a large file, else its id in git."""
    entries = api.list_repo_tree(name, recursive=True, revision=revision)
    files = [entry for entry in entries if isinstance(entry, RepoFile)]
    return {file.path: file.lfs.sha256 if file.lfs is not None else file.blob_id for file in files}


def _hashes_of(path: Path) -> set[str]:
    """The SHA-256 of a file, and its id in git (SHA-1 of a header and the bytes)."""
    large, small = (
        hashlib.sha256(),
        hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False),
    )
    with path.open("rb") as file:
        while chunk := file.read(8 << 20):
            large.update(chunk)
            small.update(chunk)
    return {large.hexdigest(), small.hexdigest()}


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _reason(error: BaseException) -> str:
    """The innermost cause in a line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[0][:200].rstrip(".:") if lines else type(error).__name__
