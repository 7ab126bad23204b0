"""Whether a text can be read, asked before any other work; and which file a name stands for."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from compress.assets import EMBEDDED, PROSE, embedded_text
from compress.errors import UserError
from compress.text.documents import JSON_SUFFIXES, open_documents

PEEK = 4 << 20
"""Bytes of a file that are read to find out whether it can be; of a larger one, its beginning."""


def local_text(data: str) -> Path | None:
    """Return the file that ``data`` names, or None where it must be a dataset's name.

    Raises:
        UserError: it is a folder, or is written as a path and there is no such file.
    """
    if data == EMBEDDED:
        return embedded_text("calibration")
    path = Path(data).expanduser()
    if os.path.isdir(path):
        raise UserError(f"The text {data} is a folder; name a .txt or .jsonl file in it.")
    if os.path.isfile(path):
        return path
    if path.suffix in {".txt", ".md", *JSON_SUFFIXES} or data.startswith(("/", "./", "../", "~")):
        raise UserError(f"There is no text file {data}; check the path.")
    return None


def check_text(data: str) -> None:
    """Refuse a text that a command could not read, before a model is opened: a file, a hub dataset, or ``"embedded"``.

    Of a file above :data:`PEEK` bytes the beginning alone is looked at, of a hub dataset only whether it could be loaded here.

    Raises:
        UserError: there is no such file, it is a folder, empty, not UTF-8 or JSON of no known form; or the package that loads
            datasets is not installed.
    """
    if data in (EMBEDDED, PROSE):
        return
    path = local_text(data)
    if path is None:
        require_datasets(data)
    else:
        _check_file(path)


def check_text_file(text: str | Path) -> None:
    """As :func:`check_text`, of a text that has to be a file or a shipped one, as evaluation asks.

    Raises:
        UserError: it cannot be read.
    """
    if str(text) not in (EMBEDDED, PROSE):
        _check_file(Path(text).expanduser())


def require_datasets(data: str) -> None:
    """Refuse what is no file here where the package that loads datasets is not installed.

    Raises:
        UserError: it is not.
    """
    imported = "datasets" in sys.modules
    if sys.modules["datasets"] is None if imported else find_spec("datasets") is None:
        raise UserError(
            f"{data} is no file here, and hub datasets need the package datasets: "
            "pip install 'compress-llm[hub]'."
        )


def _check_file(path: Path) -> None:
    documents = open_documents(path)
    whole = documents.form == "json" or documents.nbytes <= PEEK
    if not (documents.all() if whole else documents.excerpt(0, PEEK)):
        raise UserError(f"The text {path} is empty: give a text file with something to read.")
